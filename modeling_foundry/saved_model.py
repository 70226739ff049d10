"""Models and tokenizers as a folder holds them: safetensors and JSON, whole, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from .settings import FoundryError

UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def load_model(folder: str | Path, kind: Any = AutoModelForCausalLM, **options: Any) -> Any:
    """The model of a checkpoint folder, in evaluation mode.

    Args:
        kind: the class that loads it.
        options: of its ``from_pretrained``.

    Raises:
        FoundryError: no such folder, a file missing or damaged, or weights that are not the configuration's, for which
            transformers would draw random numbers.
    """
    folder = Path(folder)
    require_checkpoint(folder)
    try:
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )  # mismatched sizes are refused below, by name
    except UNREADABLE as error:
        raise FoundryError(f"{folder}: its model cannot be loaded ({_first_line(error)})") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(name if isinstance(name, str) else name[0] for name in found[what]):
            raise FoundryError(
                f"{folder}: its weights are not those of its config.json "
                f"({what.replace('_', ' ')}: {', '.join(names[:3])}{', …' * (len(names) > 3)})"
            )
    return model


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder.

    Raises:
        FoundryError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise FoundryError(f"{folder}: no tokenizer here (tokenizer.json); copy that of the stage before")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except UNREADABLE as error:
        raise FoundryError(f"{folder}: its tokenizer cannot be loaded ({_first_line(error)})") from error


def require_checkpoint(folder: Path) -> None:
    """Raise FoundryError unless there is a folder with a configuration and safetensors weights."""
    if not folder.is_dir():
        raise FoundryError(
            f"{folder}: no such folder; give a checkpoint on this machine (`hf download` brings one of the Hub)"
        )
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise FoundryError(f"{folder}: no model here ({pattern}); run the stage before this one first")


def _first_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
