"""``prepare_data.py manifest`` and everything that reads files of documents or rows."""
