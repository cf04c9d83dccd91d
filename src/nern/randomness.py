"""Seeds: every random choice has its own generator, derived from one seed; the global generators stay untouched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for `purpose`, independent of those for other purposes. The same on every machine."""
    digest = hashlib.sha256(repr((int(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # fits int64


def generator(seed: int, *purpose: object) -> torch.Generator:
    """A generator of the CPU, seeded for `purpose`."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def forked_rng(seed: int, *purpose: object, device: torch.device | None = None) -> Iterator[None]:
    """Within it the global CPU generator, and that of a GPU `device`, is seeded for `purpose`; after it, it is as it was
    before.

    For library code that offers no generator argument (default layer initialisation, transforms, dropout).
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(derived_seed(seed, *purpose))  # torch.manual_seed would seed all GPUs, too
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(derived_seed(seed, *purpose))
        yield
