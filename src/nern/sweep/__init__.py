"""`nern sweep`: many runs side by side, resumable; one table of their results, a picture and a page from it."""

from nern.sweep.command import make_page, sweep
from nern.sweep.file import PlannedRun, load_sweep
from nern.sweep.folder import SweepFolder
from nern.sweep.page import page_text
from nern.sweep.table import COLUMNS, read_tables

__all__ = ["COLUMNS", "PlannedRun", "SweepFolder", "load_sweep", "make_page", "page_text", "read_tables", "sweep"]
