"""``prepare_data.py clean``: quality filters, deduplication, decontamination."""
