"""``prepare_data.py``: text to a prepared folder."""
