"""Speed and memory, measured on the user's own machine: the jobs of `nern bench`."""
