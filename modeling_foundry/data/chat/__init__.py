"""``prepare_data.py chat``: public chat and preference datasets as files for SFT and DPO."""
