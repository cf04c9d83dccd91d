"""A step as CUDA graphs: captured once for each shape of its inputs, then replayed without the host.

The first steps of a shape run as they are (they make what the optimizer keeps, and let libraries choose their kernels);
then the step is captured, and from there on inputs are copied to where the graph reads them. A step that cannot be captured
runs as it is for the rest of the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nern.errors import NernWarning

Inputs = Sequence[Tensor | None]
Function = Callable[[Inputs], Tensor]
WARM_UP = 3  # steps of a shape before it is captured
MOST = 6  # graphs; steps of further shapes run as they are


class Recorder(Protocol):
    """Runs work where it can be captured, and captures it."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do the work now."""
        ...

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture the work without doing it; what is returned does it."""
        ...


class CudaRecorder:
    """CUDA graphs that share their memory: one runs at a time, and what it returns is copied at once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """See `Recorder`."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # other threads (loading, pinning) may use the device meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream, capture_error_mode="thread_local"):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@dataclass(frozen=True)
class _Captured:
    """Where a graph reads its inputs, what replays it, and where it leaves gradients."""

    inputs: list[Tensor | None]
    replay: Callable[[], Tensor]
    gradients: list[Tensor | None]


class GraphedStep:
    """A function of tensors, replayed from graphs.

    Args:
        function: of inputs on the device (None stays None) to one tensor. It must not wait for the device, and what it
            reads besides its inputs must stay in place.
        recorder: captures it.
        parameters: whose gradients are those of the step that ran last, also after a replay.
    """

    def __init__(self, function: Function, recorder: Recorder, parameters: Sequence[Tensor] = ()) -> None:
        self.function, self.recorder, self.parameters = function, recorder, list(parameters)
        self._seen: dict[tuple[object, ...], int] = {}
        self._graphs: dict[tuple[object, ...], _Captured] = {}
        self._failed = False

    @property
    def graphs(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def __call__(self, inputs: Inputs) -> Tensor:
        """The function's result; a tensor of the caller's own."""
        shapes = tuple(None if t is None else (tuple(t.shape), t.dtype, t.stride()) for t in inputs)
        if shapes not in self._graphs:
            seen = self._seen[shapes] = self._seen.get(shapes, 0) + 1
            if self._failed or seen <= WARM_UP or len(self._graphs) == MOST:
                return self.recorder.run(lambda: self.function(inputs))
            static = [None if t is None else t.clone() for t in inputs]
            try:
                replay = self.recorder.record(lambda: self.function(static))
                self._graphs[shapes] = _Captured(static, replay, [p.grad for p in self.parameters])
            except Exception as error:
                self._failed = True
                reason = " ".join(str(error).split())[:200]
                message = (
                    f"the step cannot be captured as a CUDA graph and runs without ({type(error).__name__}: {reason})"
                )
                warnings.warn(message, NernWarning, stacklevel=2)
                return self.recorder.run(lambda: self.function(inputs))
        graph = self._graphs[shapes]
        for room, value in zip(graph.inputs, inputs, strict=True):
            if room is not None and value is not None:
                room.copy_(value, non_blocking=True)
        result = graph.replay().clone()
        for parameter, gradient in zip(self.parameters, graph.gradients, strict=True):
            parameter.grad = gradient
        return result
