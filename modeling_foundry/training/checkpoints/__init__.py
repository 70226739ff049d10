"""Checkpoints that are whole or not used, and what each part of one holds."""
