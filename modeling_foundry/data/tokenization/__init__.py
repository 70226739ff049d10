"""``prepare_data.py tokenize``: a manifest to a corpus of token shards."""
