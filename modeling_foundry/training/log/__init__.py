"""The run log and all that is measured for it."""
