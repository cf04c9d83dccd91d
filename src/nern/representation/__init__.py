"""The representation itself: coordinates in, weights out. Knows nothing of data or training. The modules below register
predictors and their parts, in this order."""

from nern.representation import codes, encoding, heads, predictor

__all__ = ["codes", "encoding", "heads", "predictor"]
