"""Looking at runs."""

from nern.analysis.plots import plot_run

__all__ = ["plot_run"]
