"""The one console that stages print their lines on; what is bold or coloured says so by a style, never in the text."""

from __future__ import annotations

from rich.console import Console

# Without markup: names of files and folders may hold brackets, and ``[/INST]`` in a line would be an error.
console = Console(highlight=False, soft_wrap=True, markup=False)
