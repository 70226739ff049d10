"""Supervised fine-tuning and preference optimization with TRL's trainers."""
