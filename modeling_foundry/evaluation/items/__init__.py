"""What is asked of a model: tasks, questions, which of them."""
