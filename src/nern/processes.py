"""The processes that train one NeRN together, one a device: who this one is, and sums over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among all of a run.

    Attributes:
        rank: number of this process, from 0.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

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
        """Replace each tensor by its sum over all processes."""
        if not self.several or not tensors:
            return
        flat = torch.cat([t.detach().reshape(-1) for t in tensors])  # one message instead of many
        torch.distributed.all_reduce(flat)
        with torch.no_grad():
            for tensor, total in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(total.view_as(tensor))


ALONE = Processes()
