"""torchvision beside a CPU-only torch.

A torchvision wheel built for CUDA cannot load its compiled operators beside a CPU build of torch and then fails at
import, because it registers shape functions for operators that do not exist. Declaring those two operators first is
enough: nern uses torchvision's datasets and architectures, never the operators.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: object = None  # keeps the declarations alive


def import_torchvision() -> ModuleType:
    """torchvision, imported plainly where that works, else with its missing operators declared."""
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error) or _library is not None:
            raise
    import torch

    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]  # left half-imported
    library = torch.library.Library("torchvision", "DEF")
    for declaration in _DECLARATIONS:
        library.define(declaration)
    _library = library
    return importlib.import_module("torchvision")
