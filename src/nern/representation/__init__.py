"""The representation itself: coordinates in, weights out. Knows nothing of data or training."""
