"""Training: of NeRNs, and of original networks."""

from nern.training.interrupt import Interrupted
from nern.training.members import Member
from nern.training.original_trainer import OriginalTrainer
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer
from nern.training.weight_batches import WeightBatches

__all__ = [
    "Interrupted",
    "Member",
    "OriginalTrainer",
    "RunFolder",
    "Trainer",
    "WeightBatches",
]
