"""``prepare_data.py verify`` and ``inspect``."""
