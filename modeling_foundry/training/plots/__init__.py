"""Runs as pictures and tables, from their logs alone."""
