"""The results and a short conversation, printed."""

from __future__ import annotations

from typing import Any

from .report import build_markdown

NUM_TURNS = 3


def print_results(results: dict[str, Any], console: Any) -> None:
    """Scores and verdicts as tables."""
    from rich.markdown import Markdown

    console.print(Markdown(build_markdown(results)))


def print_conversation(results: dict[str, Any], console: Any) -> None:
    """The last model's answers to the first held-out prompts the seed drew."""
    from rich.padding import Padding
    from rich.text import Text

    if not results["answers"]:
        return
    name = list(results["answers"][0]["models"])[-1]
    console.print(f"\n[bold]A chat with {name}[/bold] (held-out functions, greedy, not selected)")
    for answer in results["answers"][:NUM_TURNS]:
        said = answer["models"][name]
        console.print(Padding(Text(answer["prompt"], style="cyan"), (1, 0, 0, 2)))
        console.print(Padding(Text(said["text"] + ("" if said["ended"] else " … (cut)")), (0, 0, 0, 4)))
        console.print(Padding(Text(f"the true one: {answer['truth']}", style="dim"), (0, 0, 0, 4)))
