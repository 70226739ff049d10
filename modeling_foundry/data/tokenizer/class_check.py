"""Whether AutoTokenizer makes of a folder what its ``tokenizer.json`` says, by which a corpus is encoded.

Some classes that ``tokenizer_config.json`` may name take no more than the vocabulary and the merges of that file and
build the rest as their first model had it: a model trained on the one would be used with the other.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ...settings import FoundryError

CONFIG_NAME = "tokenizer_config.json"
# What a corpus keeps of a tokenizer, so what AutoTokenizer will find.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# Those that read all of tokenizer.json; to know that, transformers (seconds) need not be imported.
KEEPERS = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
# Where normalizers and patterns differ: what each is about, alone, so that a difference is short to show.
PROBES = (
    "12345", "x1 = 3.14", "٣² Ⅷ½", "word", " word", "  two", "a  b   c", "end ", "\n", "\n\n\n", "a \n  b", "\r\n\r\n",
    "\ta\t\tb", "});\n\n", "It's we'll", "IT'S WE'LL", "it’s", "camelCase HTTPServer", "snake_case", "Capital ÉTÉ İ ß",
    "naïve", "cafe\u0301", "x\u0338\u0301y", "ﬁ ① ＡＢ", "東京の中国語", "\uf900", "한국 \u1112\u1161\u11ab", "नमस्ते",
    "مرحبا", "😀 👩\u200d👧", "\xa0a\u3000b\u200bc", "a\x00\x07b", "``quoted'' \"—\"", "https://a.b/c?d=e#f", "▁x ▁",
)  # fmt: skip
# What the models of the library have beside their vocabulary; an empty affix is none.
FLAGS = (
    "ignore_merges", "byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix",
    "max_input_chars_per_word",
)  # fmt: skip


def refuse_another_class(folder: Path, files: tuple[str, ...]) -> None:
    """Load a folder as training will, and compare, where its class is not one that keeps ``tokenizer.json``.

    Args:
        files: those that training will find; a model's ``config.json`` beside them could name another class.

    Raises:
        FoundryError: it cannot be loaded, or another tokenizer comes of it.
    """
    if config_of(folder).get("tokenizer_class") not in KEEPERS:
        refuse_another_tokenizer(folder, load_alone(folder, files))


def load_alone(folder: Path, files: tuple[str, ...]) -> Any:
    """What AutoTokenizer makes of these files of a folder, without what else lies there.

    Raises:
        FoundryError: it does not load them.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        for name in files:
            if (folder / name).is_file():
                (Path(temporary) / name).write_bytes((folder / name).read_bytes())
        try:
            return AutoTokenizer.from_pretrained(temporary, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever the class raises on a vocabulary that is not its own
            reason = " ".join(str(error).replace(temporary, str(folder)).split())[:200]
            named = config_of(folder).get("tokenizer_class")
            raise FoundryError(
                f"{folder / CONFIG_NAME}: tokenizer_class: {named} does not load this tokenizer ({reason}); {_right()}"
            ) from error


def tokens_around(folder: Path, files: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Ids that AutoTokenizer puts before and behind every text it encodes, as Llama 3's begins with its BOS.

    Raises:
        FoundryError: it does not load the folder.
    """
    if config_of(folder).get("tokenizer_class") in KEEPERS and not _post_processor_adds(folder):
        return [], []  # known without the seconds that importing transformers takes
    loaded = load_alone(folder, files)
    bare, whole = (loaded("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    place = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return whole[:place], whole[place + len(bare) :]


def _post_processor_adds(folder: Path) -> bool:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return backend.num_special_tokens_to_add(is_pair=False) > 0


def refuse_another_tokenizer(folder: Path, loaded: Any) -> None:
    """Compare what AutoTokenizer made of a folder with its ``tokenizer.json``.

    Raises:
        FoundryError: with the first difference.
    """
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs, said = getattr(loaded, "backend_tokenizer", None), "is not of the tokenizers library"
    if theirs is not None:
        said = next(differences(ours, theirs), "")
    if said:
        name = type(loaded).__name__
        raise FoundryError(f"{folder / CONFIG_NAME}: tokenizer_class: {name} {said}; {_right()}")


def differences(ours: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    """What decides ids and is not the same, in words.

    The parts are compared, for a small vocabulary gives equal ids to pieces that differ; ids come last.
    """
    for text in PROBES:
        expected, found = pieces(ours, text), pieces(theirs, text)
        if found != expected:
            yield f"splits {text!r} into {found}, tokenizer.json into {expected}"
    kinds = [type(each.model).__name__ for each in (ours, theirs)]
    if kinds[0] != kinds[1]:
        yield f"is a {kinds[1]} model, tokenizer.json a {kinds[0]}"
    for flag in FLAGS:
        values = [getattr(each.model, flag, None) or None for each in (ours, theirs)]
        if values[0] != values[1]:
            yield f"has {flag} {values[1]}, tokenizer.json {values[0]}"
    ids = theirs.get_vocab(with_added_tokens=True)
    for token, id in ours.get_vocab(with_added_tokens=True).items():
        if ids.get(token) != id:
            yield f"gives {token!r} the id {ids.get(token)}, tokenizer.json {id}"
    if getattr(ours.model, "dropout", None):
        return  # no two encodings are the same
    for text in (*PROBES, *_around_added_tokens(ours)):
        wanted, made = tokens(ours, text), tokens(theirs, text)
        if made != wanted:
            yield f"makes {made} of {text!r}, tokenizer.json {wanted}"


def pieces(backend: Tokenizer, text: str) -> list[str]:
    """What the model gets: a text normalized and split.  One step may do what in another file the other does."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [text] if text else []
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def tokens(backend: Tokenizer, text: str) -> list[str] | None:
    """Tokens of a text, None where it has none: a vocabulary of words may have no token for unknown ones."""
    try:
        return list(backend.encode(text, add_special_tokens=False).tokens)
    except Exception:  # the library raises Exception itself
        return None


def _around_added_tokens(backend: Tokenizer) -> list[str]:
    """Texts with the tokens that documents can hold: what follows one may be normalized as a text of its own."""
    added = backend.get_added_tokens_decoder().values()
    return [f"a{token.content}b {token.content} c" for token in added if not token.special]


def _right() -> str:
    return "write PreTrainedTokenizerFast there, which keeps tokenizer.json as it is"


def config_of(folder: Path) -> dict[str, Any]:
    """The settings in ``tokenizer_config.json``; none where there is no such file."""
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
        return config
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path}: not readable as JSON; expected an object of settings") from error
