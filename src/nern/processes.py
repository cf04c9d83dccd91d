"""The processes that train one NeRN together, one a device: how they are started and meet, sums and messages.

A launcher (torchrun, `accelerate launch`) starts them and tells each, in its environment, which it is. They meet through
torch.distributed itself, which is all that is needed of accelerate's PartialState, and does not take each of several
processes without a GPU for alone.

Two kinds of messages: tensors on their device (NCCL on GPUs, gloo on CPUs), and small things between the hosts (gloo),
which no device waits for.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nern.errors import NernError

TIMEOUT = timedelta(hours=1)  # the longest that processes wait for one of them: to order kernels, say
THREADS = "OMP_NUM_THREADS"

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all of a run."""

    rank: int = 0  # number of this process, from 0
    count: int = 1  # of all processes
    local_rank: int = 0  # among those of its machine
    local_count: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def share(self, items: int) -> slice:
        """Which of so many items this process works on: consecutive ones, as many as the others have, or one more."""
        least, more = divmod(items, self.count)
        start = self.rank * least + min(self.rank, more)
        return slice(start, start + least + (self.rank < more))

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes. All get the same, to the last bit."""
        if not self.several or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])  # one message instead of many
        with self._in_touch():
            dist.all_reduce(flat)
        with torch.no_grad():
            for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def largest(self, number: int) -> int:
        """The largest of the numbers that all processes hand in."""
        largest = torch.tensor([number])
        if self.several:
            with self._in_touch():
                dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, where alone it is called. A NernError that it raises is raised in all."""
        if not self.several:
            return make()
        found: list[Any] = [None, None]  # the result, what went wrong
        if self.main:
            try:
                found[0] = make()
            except NernError as error:
                found[1] = error
            except BaseException as error:
                told = NernError(f"process 0 ended: {type(error).__name__}: {error}")
                self._tell([None, told])
                raise
        self._tell(found)
        result, refused = found
        if refused is not None:
            raise refused
        return result

    def _tell(self, found: list[Any]) -> None:
        """Replace what is in the list by what the main process has in it."""
        with self._in_touch():
            dist.broadcast_object_list(found, device=torch.device("cpu"))

    def collect(self, item: T) -> list[T]:
        """The items of all processes, in their order."""
        if not self.several:
            return [item]
        items: list[Any] = [None] * self.count
        with self._in_touch():
            dist.all_gather_object(items, item)
        return items

    @contextmanager
    def first_here(self) -> Iterator[None]:
        """The first process of each machine passes through alone: what it downloads or makes, the others find."""
        if self.local_rank > 0:
            self.largest(0)  # all have to hand something in
        try:
            yield
        finally:
            if self.local_rank == 0:
                self.largest(0)

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what gloo and NCCL raise where another process is gone
            reason = str(error).splitlines()[0][:200]
            raise NernError(
                f"process {self.rank} cannot reach the others; one of them may have ended ({reason})"
            ) from error


ALONE = Processes()


# --- start and end ------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether this process is one of several that torchrun or the like has started."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def process_number() -> int:
    """Of this process among those launched; 0 if it is alone."""
    return int(os.environ["RANK"]) if launched() else 0


def join() -> Processes:
    """The processes of this run, met; `ALONE` where no launcher has started several. They part when they end: to part
    and meet again, several runs in one program would have to wait for each other in between.

    Raises:
        NernError: they cannot connect to each other.
    """
    if not (dist.is_available() and dist.is_initialized()):  # by an earlier run, or the program that calls nern
        if not launched():
            return ALONE
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise NernError(f"the processes cannot connect to each other: {error}") from error
        atexit.register(_leave)
    elif dist.get_world_size() > 1 and "gloo" not in dist.get_backend_config():
        raise NernError(
            "nern sends messages between CPUs, too: init_process_group needs the backend 'cpu:gloo,cuda:nccl'"
        )
    local = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    return Processes(dist.get_rank(), dist.get_world_size(), *local)


def _leave() -> None:
    if dist.is_initialized():  # the program may have parted already
        dist.destroy_process_group()


def check_alone(command: str) -> None:
    """Raise NernError where several processes were started for something that one does."""
    if launched():
        raise NernError(f"{command} works in one process; start it without torchrun or accelerate")


def restart(count: int, command: Sequence[str]) -> None:
    """Go on as `count` processes, each of which runs `nern COMMAND`: this process becomes torchrun. Does not return."""
    os.environ.setdefault(THREADS, str(max((os.cpu_count() or 1) // count, 1)))  # torchrun would set 1, and say so
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "nern", *command])
