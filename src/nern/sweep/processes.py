"""Commands run side by side, each in a process of its own; stopped so that they can save."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nern.training.interrupt import Interrupted, StopRequest

POLL_SECONDS = 0.05
TAIL_LINES = 4  # of a log, to tell why a command failed


@dataclass(frozen=True)
class Job:
    """A command to run.

    Attributes:
        name: for people.
        command: with its arguments.
        log: file that gets what it prints.
        append: after what the file holds already.
    """

    name: str
    command: Sequence[str]
    log: Path
    append: bool = False


@dataclass(frozen=True)
class Ended:
    """A command that has ended: after how many seconds, and why it failed (None: it did not)."""

    job: Job
    seconds: float
    error: str | None


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    since: float
    log_start: int


def run_side_by_side(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Ended], None] = lambda ended: None,
) -> list[Ended]:
    """Run all jobs, at most one in each place at a time; one that fails does not keep others from running.

    Args:
        places: environment variables that a job in this place gets besides those of this process.
        on_start, on_end: called in this process.

    Returns:
        What ended, in that order.

    Raises:
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP; running jobs got SIGTERM and have ended. A second Ctrl-C kills them.
    """
    waiting, free = deque(jobs), deque(range(len(places)))
    running: dict[int, _Running] = {}
    ended: list[Ended] = []
    told = False
    with StopRequest() as stop:
        try:
            while running or (waiting and stop.signal_number is None):
                if stop.signal_number is not None and not told:
                    told = True
                    for one in running.values():
                        one.process.terminate()
                while waiting and free and not told:
                    place = free.popleft()
                    running[place] = _start(waiting.popleft(), places[place])
                    on_start(running[place].job)
                for place, one in list(running.items()):
                    if one.process.poll() is not None:
                        del running[place]
                        free.append(place)
                        if told and one.process.returncode:  # it was told to stop
                            continue
                        ended.append(Ended(one.job, time.monotonic() - one.since, _failure(one)))
                        on_end(ended[-1])
                if running:
                    time.sleep(POLL_SECONDS)
        finally:  # an error here, or a second Ctrl-C
            for one in running.values():
                one.process.kill()
                one.process.wait()
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number, f"stopped by {signal.Signals(stop.signal_number).name}")
    return ended


def _start(job: Job, place: Mapping[str, str]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab" if job.append else "wb") as log:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | place,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which passes it on once
        )
        return _Running(job, process, time.monotonic(), log.tell() if job.append else 0)


def _failure(one: _Running) -> str | None:
    """Why a process failed: the error that it printed, or the last lines of what it did."""
    code = one.process.returncode
    if code == 0:
        return None
    with one.job.log.open("rb") as log:
        log.seek(one.log_start)
        lines = [line.rstrip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    told = "\n".join(lines[errors[-1] :] if errors else lines[-TAIL_LINES:]).removeprefix("error: ")
    if code < 0:
        by = f"ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"ended by signal {-code}"
        return (
            f"{by} (was there memory enough?)\n{told}".rstrip() if -code == signal.SIGKILL else f"{by}\n{told}".rstrip()
        )
    return told or f"exit status {code}, nothing printed"
