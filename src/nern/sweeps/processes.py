"""Commands run side by side, each in a process of its own; stopped so that they can save."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nern.stopping import Interrupted, StopRequest

POLL_SECONDS = 0.05
TAIL_LINES = 4  # of a log, to tell why a command failed


@dataclass(eq=False)
class Job:
    """A command to run."""

    name: str
    command: Sequence[str]
    log: Path  # file that gets what it prints
    append: bool = False  # after what the file holds already
    seconds: float = 0.0  # that it took, once it has ended
    error: str | None = None  # why it failed; None: it did not
    process: subprocess.Popen[bytes] = field(init=False)
    _log_start: int = 0

    def start(self, variables: Mapping[str, str]) -> None:
        """Start the process, with these environment variables besides those of this one."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab" if self.append else "wb") as log:
            self._log_start, self.seconds = log.tell(), -time.monotonic()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | variables,
                start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which passes it on once
            )

    def end(self) -> None:
        """Note how long the process took and why it failed: the error that it printed, or the last lines of what it did."""
        self.seconds += time.monotonic()
        code = self.process.returncode
        if code == 0:
            return
        text = self.log.read_bytes()[self._log_start :].decode("utf-8", "replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        told = "\n".join(lines[errors[-1] :] if errors else lines[-TAIL_LINES:]).removeprefix("error: ")
        if code < 0:
            told = f"ended by a signal: {signal.strsignal(-code)}\n{told}".rstrip()
        self.error = told or f"exit status {code}, nothing printed"


def run_side_by_side(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    on_start: Callable[[Job], None] = lambda job: None,
    on_end: Callable[[Job], None] = lambda job: None,
) -> None:
    """Run all jobs, at most one in each place at a time; one that fails does not keep others from running. `places`:
    environment variables that a job in this place gets besides those of this process.

    Raises:
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP; running jobs got SIGTERM and have ended. A second Ctrl-C kills them.
    """
    waiting, free = deque(jobs), deque(places)
    running: dict[Job, Mapping[str, str]] = {}
    told = False
    with StopRequest() as stop:
        try:
            while running or (waiting and stop.signal_number is None):
                if stop.signal_number is not None and not told:
                    told = True
                    for job in running:
                        job.process.terminate()
                while waiting and free and not told:
                    job, place = waiting.popleft(), free.popleft()
                    job.start(place)
                    running[job] = place
                    on_start(job)
                for job in [job for job in running if job.process.poll() is not None]:
                    free.append(running.pop(job))
                    if not (told and job.process.returncode):  # else it was told to stop
                        job.end()
                        on_end(job)
                if running:
                    time.sleep(POLL_SECONDS)
        finally:  # an error here, or a second Ctrl-C
            for job in running:
                job.process.kill()
                job.process.wait()
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number, f"stopped by {signal.Signals(stop.signal_number).name}")
