"""What a user is told: bad input is one line and an exit code."""

from __future__ import annotations

from pathlib import Path


class FoundryError(ValueError):
    """Bad input.  The message is one line that names the file, the key and what would be right.

    ``exit_code`` is what the recipe ends with; ``is_said`` is true where the line was printed already (by rank 0).
    """

    exit_code = 2
    is_said = False


class SettingsError(FoundryError):
    """A setting that cannot be used as written."""


def sought(path: str | Path) -> str:
    """A path for a message that it is not there: where a relative one was looked for, and why there."""
    if Path(path).is_absolute():
        return str(path)
    return f"{path} ({Path(path).absolute()}, as this was started in {Path.cwd()})"
