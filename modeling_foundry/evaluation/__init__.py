"""Evaluation: lm-eval tasks, paired comparisons with their errors, stop rate, and the report."""
