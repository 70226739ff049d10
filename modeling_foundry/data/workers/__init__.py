"""Where the work of a command runs."""
