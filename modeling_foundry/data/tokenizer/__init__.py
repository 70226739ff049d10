"""Tokenizers: trained, proved, and the fast way to the same ids."""
