"""The files of an exported folder as readers other than this version of transformers understand them.

transformers 5 renamed fields, and version 4 (4.57.6 was tried: docs/publish.md) takes its default for what it does not
find: a RoPE base of 10,000 for 1,000,000, without a word.  So both names are written.  Its tokenizer class does not
exist there either, and a tokenizer as it was saved carries what only the machine of the export had.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..files import write_atomically
from ..saved_model import load_tokenizer
from ..settings import FoundryError
from .plain_template import plain_templates

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
# Every release of transformers has this class, and it keeps tokenizer.json as it is.
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER, "special_tokens_map.json", "chat_template.jinja", "additional_chat_templates/*.jinja"
)  # fmt: skip
# The same tensors and texts in a form that only old readers need, where the checkpoint has them.
VOCABULARY_FILES = ("vocab.json", "merges.txt", "tokenizer.model")
# What describes the machine and the libraries of the export, or code that does not come along.
NOT_OF_THE_MODEL = (
    "backend", "is_local", "local_files_only", "name_or_path", "_name_or_path", "_commit_hash", "_from_model_config",
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "files_loaded", "cache_dir", "device_map",
    "slow_tokenizer_class", "auto_map",
)  # fmt: skip
# What transformers' own check lets through and generation refuses, or other readers do: type, least, most, in words.
TINY, HUGE = 1e-9, 1e9
SAMPLING: dict[str, tuple[type, float, float, str]] = {
    "do_sample": (bool, 0, 1, "true or false"),
    "temperature": (float, TINY, HUGE, "a number above 0"),
    "top_p": (float, TINY, 1, "a number above 0, at most 1"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "typical_p": (float, TINY, 1, "a number above 0, at most 1"),
    "top_k": (int, 0, HUGE, "a whole number, 0 for off"),
    "repetition_penalty": (float, TINY, HUGE, "a number above 0"),
    "max_new_tokens": (int, 1, HUGE, "a whole number above 0"),
    "max_length": (int, 1, HUGE, "a whole number above 0"),
}


def write_portable_config(folder: Path) -> None:
    """Add the names of transformers 4 to a stock ``config.json``; the folder's generation settings likewise."""
    path = folder / CONFIG
    _write(path, portable_config(read_object(path)))
    path = folder / GENERATION
    if path.is_file():
        kept = _of_the_model(read_object(path))
        for name, (kind, *_) in SAMPLING.items():
            if kind is float and type(kept.get(name)) is int:  # generate() wants a float
                kept[name] = float(kept[name])
        _write(path, kept)


def portable_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with ``rope_theta``, ``rope_scaling`` and ``torch_dtype`` beside their names of today."""
    kept = _of_the_model(config)
    rope = kept.get("rope_parameters")
    if rope:
        own = ("rope_theta", "partial_rotary_factor")
        scaling = {name: value for name, value in rope.items() if name not in own}
        kept |= {name: rope[name] for name in own if name in rope}
        kept["rope_scaling"] = scaling if rope.get("rope_type", "default") != "default" else None
        if rope.get("rope_type") == "longrope":
            kept["original_max_position_embeddings"] = _original_length(kept)
    if "dtype" in kept:
        kept["torch_dtype"] = kept["dtype"]
    return kept


def _original_length(config: dict[str, Any]) -> int:
    """For longrope, version 4 wants it beside the dictionary, and makes the factor of it.

    Raises:
        FoundryError: the dictionary has another factor, by which version 5 goes.
    """
    rope, longest = config["rope_parameters"], config["max_position_embeddings"]
    original = rope["original_max_position_embeddings"]
    if rope.get("factor") not in (None, longest / original) and rope.get("attention_factor") is None:
        raise FoundryError(
            f"rope_parameters: factor {rope['factor']} of longrope is not max_position_embeddings / "
            f"original_max_position_embeddings ({longest} / {original}), which other readers take for it; give an "
            "attention_factor"
        )
    return original


def write_portable_tokenizer(checkpoint: Path, folder: Path, longest: int, num_rows: int) -> None:
    """The tokenizer of a checkpoint, as transformers uses it, for every reader of ``folder``.

    Args:
        longest: positions of the model: what a reader may cut a prompt to.
        num_rows: rows of the embedding.

    Raises:
        FoundryError: it is damaged, has ids that the model has no row for, or a chat template that says something
            else without transformers' own tags.
    """
    tokenizer = load_tokenizer(checkpoint)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise FoundryError(f"{checkpoint}: its tokenizer is not of the tokenizers library; give one that is")
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= num_rows:
        raise FoundryError(
            f"{checkpoint / 'tokenizer.json'}: token ids up to {largest}, and the embedding has {num_rows} rows; put "
            "the tokenizer there that the model was trained with"
        )
    tokenizer.chat_template = plain_templates(tokenizer, str(checkpoint))
    tokenizer.model_max_length = longest
    backend.no_truncation()  # a call in training leaves its length in tokenizer.json, and other readers obey it
    backend.no_padding()
    tokenizer.save_pretrained(folder)
    _write(folder / TOKENIZER, _portable_tokenizer_config(read_object(folder / TOKENIZER), tokenizer))
    for name in VOCABULARY_FILES:
        if (checkpoint / name).is_file() and not (folder / name).exists():
            (folder / name).write_bytes((checkpoint / name).read_bytes())


def _portable_tokenizer_config(config: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    kept = _of_the_model(config)
    kept["tokenizer_class"] = TOKENIZER_CLASS
    # The class's default has a third name there, which its models' generate() refuses.
    kept["model_input_names"] = list(tokenizer.model_input_names)
    kept["clean_up_tokenization_spaces"] = bool(tokenizer.clean_up_tokenization_spaces)
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        kept["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    elif templates is not None:  # beside chat_template.jinja, which older readers do not look for
        kept["chat_template"] = templates
    return kept


def check_generation_config(checkpoint: Path, num_rows: int) -> None:
    """Raise FoundryError where a checkpoint's generation settings are none, or name ids that the model has not."""
    path = checkpoint / GENERATION
    if not path.is_file():
        return
    content = read_object(path)
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        value = content.get(name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (type(token) is int and 0 <= token < num_rows):
                raise FoundryError(f"{path}: {name}: {token!r} is none of the model's {num_rows} token ids")
    for name, (kind, low, high, words) in SAMPLING.items():
        value = content.get(name)
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if value is not None and not (fits and low <= value <= high):
            raise FoundryError(f"{path}: {name}: {value!r} is not {words}")
    check_that_it_can_be_saved(path)


def check_that_it_can_be_saved(path: Path) -> None:
    """Raise FoundryError where transformers reads a generation_config.json that it then refuses to write."""
    try:
        GenerationConfig(**read_object(path)).validate(strict=True)
    except (ValueError, TypeError) as error:
        raise FoundryError(f"{path}: {' '.join(str(error).split())[:300]}") from error


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FoundryError: the file is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise FoundryError(f"{path}: not a JSON object")
    return content


def _of_the_model(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in NOT_OF_THE_MODEL}


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
