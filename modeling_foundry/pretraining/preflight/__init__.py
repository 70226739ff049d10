"""What is said and checked before the first step."""
