"""``prepare_data.py lint``: samples, tokenizer and chat template against each other."""
