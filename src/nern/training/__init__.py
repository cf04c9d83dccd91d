"""Training: of NeRNs, and of original networks."""
