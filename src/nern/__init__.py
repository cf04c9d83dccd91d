"""nern: neural representations of neural networks.

A trained network's convolution kernels are a signal over coordinates (layer, filter, channel). A NeRN is a small
network, the predictor, that maps an encoded coordinate to its kernel.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nern.public import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """A public name or a module, imported when it is first used: torch alone takes seconds."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'nern' has no attribute {name!r}")
    if importlib.util.find_spec(f"nern.{name}") is not None:
        return importlib.import_module(f"nern.{name}")
    return getattr(importlib.import_module("nern.public"), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *importlib.import_module("nern.public").__all__])
