"""Optimizers whose step has a host's part and a device's part."""

from __future__ import annotations

from collections.abc import Callable

import torch


class TwoPartOptimizer(torch.optim.Optimizer):
    """A step is `prepare()`, on the host, then `update()`, on the device. With `capturable` in its groups, `update()` reads
    the numbers of the step from tensors that `prepare()` fills without waiting: captured in a CUDA graph (after one update
    that was not, which makes the state), it may be replayed after each `prepare()`."""

    def prepare(self) -> None:
        """The host's part."""
        raise NotImplementedError

    def update(self) -> None:
        """The device's part, with the numbers of the last `prepare()`."""
        raise NotImplementedError

    @property
    def capturable(self) -> bool:
        """Whether `update()` may be captured in a graph."""
        return all(group["capturable"] for group in self.param_groups)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """`prepare()` and `update()`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.prepare()
        self.update()
        return loss
