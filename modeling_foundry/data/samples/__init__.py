"""Rows of conversations and preferences: read from any file, each checked, refused with its line."""
