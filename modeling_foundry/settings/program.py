"""A recipe from its start to its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from ..launcher import end_with_launcher
from .errors import FoundryError


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a recipe: bad input is one line and exit code 2, an interrupt is exit code 130."""
    end_with_launcher()
    try:
        code = main() or 0
    except FoundryError as error:
        if not error.is_said:
            print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        code = 130
    sys.exit(code)
