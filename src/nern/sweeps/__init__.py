"""`nern sweep`: many runs side by side, resumable; one table of their results and a picture of it."""

from nern.sweeps.file import PlannedRun, load_sweep
from nern.sweeps.run import sweep
from nern.sweeps.table import COLUMNS

__all__ = ["COLUMNS", "PlannedRun", "load_sweep", "sweep"]
