"""Pretraining from scratch: packed tokens, transformers' Trainer, its settings and preflight."""
