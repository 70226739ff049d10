"""What a recipe may ask of transformers and TRL, and what is refused in one line."""
