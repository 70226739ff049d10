"""Losses and figures as sums over what they are means of, on any ranks and batches."""
