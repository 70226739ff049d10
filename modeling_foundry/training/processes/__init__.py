"""The ranks of a run: how they start, hold the folder, and end."""
