"""Training a NeRN."""

from nern.training.interrupt import Interrupted
from nern.training.run_folder import RunFolder
from nern.training.tracking import Tracker
from nern.training.trainer import Trainer
from nern.training.weight_batches import WeightBatches

__all__ = ["Interrupted", "RunFolder", "Tracker", "Trainer", "WeightBatches"]
