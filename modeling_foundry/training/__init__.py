"""Pretraining and alignment: transformers' Trainer and TRL's trainers with one set of callbacks."""
