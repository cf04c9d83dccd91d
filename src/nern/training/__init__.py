"""Training: of NeRNs, and of original networks."""

from nern.training.interrupt import Interrupted
from nern.training.loop import History, Loop
from nern.training.members import Member
from nern.training.original_trainer import OriginalTrainer
from nern.training.run_folder import RunFolder
from nern.training.tracking import Tracker
from nern.training.trainer import Trainer
from nern.training.weight_batches import WeightBatches

__all__ = [
    "History",
    "Interrupted",
    "Loop",
    "Member",
    "OriginalTrainer",
    "RunFolder",
    "Tracker",
    "Trainer",
    "WeightBatches",
]
