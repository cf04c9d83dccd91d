"""`nern sweep`: many runs side by side, resumable; one table of their results and a picture of it."""
