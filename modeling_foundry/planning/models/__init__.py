"""A model as its file describes it."""
