"""Models and tokenizers as a folder holds them: safetensors and JSON, whole, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from .settings import FoundryError, sought

ADAPTER_CONFIG = "adapter_config.json"
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


def load_tokenizer_to_train(
    folder: str | Path, chat_template_path: str | None = None
) -> PreTrainedTokenizerBase:
    """A folder's tokenizer as TRL trains with it, so that what is checked is what is trained.

    Args:
        chat_template_path: TRL's option: a Jinja file, or a folder whose tokenizer gives its template, its tokens and
            its end of text.

    Raises:
        FoundryError: neither, or a tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(folder)
    if chat_template_path is None:
        return tokenizer
    path = Path(chat_template_path)
    if path.is_file() and path.suffix in (".jinja", ".j2"):  # what TRL takes for a file
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FoundryError(f"chat_template_path: {path}: cannot be read as UTF-8 ({error})") from error
        return tokenizer
    if not path.is_dir():
        expected = "expected a .jinja or .j2 file, or a folder with a tokenizer"
        raise FoundryError(f"chat_template_path: {path}: {expected}")
    return _with_template_of(load_tokenizer(path), tokenizer, path)


def _with_template_of(
    source: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, path: Path
) -> PreTrainedTokenizerBase:
    """The tokenizer's half of TRL's ``clone_chat_template``, which needs the weights as well."""
    try:
        tokenizer.chat_template = source.get_chat_template()
    except ValueError as error:
        raise FoundryError(f"chat_template_path: {path}: its tokenizer has no chat template") from error
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([each for each in source.added_tokens_decoder.values() if each.content not in known])
    tokenizer.eos_token = source.eos_token
    return tokenizer


def require_checkpoint(folder: Path) -> None:
    """Raise FoundryError unless there is a folder with a configuration and safetensors weights."""
    if not folder.is_dir():
        raise FoundryError(
            f"{sought(folder)}: no such folder; give a checkpoint on this machine (`hf download` brings one of the Hub)"
        )
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise FoundryError(f"{sought(folder)}: no model here ({pattern}); {_what_it_is(folder)}")


def _what_it_is(folder: Path) -> str:
    """What to do about a folder that is no checkpoint."""
    if (folder / ADAPTER_CONFIG).is_file():
        return (
            "it is an adapter, not a model: merge it into its base (peft: merge_and_unload, then save_pretrained) "
            "and give that folder"
        )
    if any(folder.glob("*.bin")):
        return (
            "its weights are pickles (.bin); save them as safetensors (save_pretrained of transformers does)"
        )
    if any(folder.glob("*.gguf")):
        return "GGUF is for inference; give the safetensors it was made from"
    if (folder / "model").is_dir():
        return f"give {folder / 'model'}"
    return "run the stage before this one first, or give another folder"


def _first_line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
