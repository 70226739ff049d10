"""What a user is told: bad input is one line and an exit code."""

from __future__ import annotations


class FoundryError(ValueError):
    """Bad input.  The message is one line that names the file, the key and what would be right.

    ``exit_code`` is what the recipe ends with; ``is_said`` is true where the line was printed already (by rank 0).
    """

    exit_code = 2
    is_said = False


class SettingsError(FoundryError):
    """A setting that cannot be used as written."""
