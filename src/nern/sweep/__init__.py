"""`nern sweep`: many runs side by side, resumable; one table of their results and a picture of it."""

from nern.sweep.file import PlannedRun, load_sweep
from nern.sweep.run import sweep
from nern.sweep.table import COLUMNS

__all__ = ["COLUMNS", "PlannedRun", "load_sweep", "sweep"]
