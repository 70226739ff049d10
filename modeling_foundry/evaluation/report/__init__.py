"""The report of an evaluation: page, pictures, words."""
