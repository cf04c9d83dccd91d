"""Objectives: what a NeRN is trained to minimise."""

from nern.objectives import distillation, feature_maps, reconstruction, smoothness, task
from nern.objectives.objective import Losses, Objective

__all__ = [
    "Losses",
    "Objective",
    "distillation",
    "feature_maps",
    "reconstruction",
    "smoothness",
    "task",
]
