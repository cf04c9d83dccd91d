"""Rounding a network's weights without training it: what its layers meet on some images, and errors that make up for each
other."""

from nern.calibration.network import Calibrated, calibrate

__all__ = ["Calibrated", "calibrate"]
