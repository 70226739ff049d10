"""What a ``tokenizer.json`` must be for tiktoken to give the same ids, read from the file itself.

tiktoken merges the neighbours whose joined bytes have the lowest rank; the tokenizers library merges the pair
that comes first in its list.  Where every merge gives a token of its own, later merges give larger ids and each
token's bytes merge into that token, the two are one algorithm: inside a token's span both have done the same
merges up to its rank, so the last two parts are the pair of its one merge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .training import QWEN_PATTERN

# What the tokenizers library splits by where ByteLevel has use_regex: GPT-2's pattern.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The constructs that Oniguruma and Rust's regex read alike.  Possessive and lazy quantifiers, anchors, the dot,
# look-behind, back references, set operations and POSIX classes are not among them.
_SYNTAX = re.compile(
    r"""(?P<open>\(\?:|\(\?i:|\(\?!|\(\?=)
    | (?P<close>\)) | (?P<or>\|)
    | (?P<quantifier>[?*+](?![?*+])|\{\d+(?:,\d*)?\}(?![?*+]))
    | (?P<characters>\[\^?(?:\\[pP]\{\w+\}|\\[sSrnt]|(?!&&|--|~~)[^\\\[\]])+\]|\\[pP]\{\w+\}|\\[sS])
    | (?P<literal>\\[rnt]|[^\\\[\](){}|?*+.^$])""",
    re.VERBOSE,
)


class NotByteLevelBPE(Exception):  # noqa: N818 - it is a finding, not a fault
    """Why a tokenizer is left to its own library."""


@dataclass(frozen=True)
class ByteLevelBPE:
    """A tokenizer in tiktoken's terms.

    Args:
        pattern: regular expression of the pieces that are merged apart.
        is_nfc: whether text is brought to NFC first.
        ranks: bytes of each token to its id; the larger the id, the later it is merged.
        spelled_tokens: added tokens that are matched in ordinary text, for they are not marked special.
    """

    pattern: str
    is_nfc: bool
    ranks: dict[bytes, int]
    spelled_tokens: tuple[str, ...]


def read_byte_level_bpe(content: dict[str, Any]) -> ByteLevelBPE:
    """Read a parsed ``tokenizer.json``.

    Raises:
        NotByteLevelBPE: saying what is not as tiktoken would do it.
    """
    try:
        pattern = _pattern_of(content.get("pre_tokenizer"))
        pattern_parts(pattern)
        normalizer = content.get("normalizer")
        if normalizer is not None and normalizer != {"type": "NFC"}:
            raise NotByteLevelBPE(f"its normalizer is {normalizer['type']}, not NFC")
        spelled = tuple(token["content"] for token in content["added_tokens"] if not token["special"])
        return ByteLevelBPE(pattern, normalizer is not None, _ranks_of(content["model"]), spelled)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotByteLevelBPE(f"its tokenizer.json is of a form not known here ({error!r})") from error


def _pattern_of(pre_tokenizer: Any) -> str:
    steps = [pre_tokenizer]
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Sequence":
        steps = pre_tokenizer["pretokenizers"]
    if not steps or not isinstance(steps[-1], dict) or steps[-1].get("type") != "ByteLevel":
        raise NotByteLevelBPE("its pre-tokenizer does not end with ByteLevel")
    if steps[-1].get("add_prefix_space", True):
        raise NotByteLevelBPE("it puts a space before each text (add_prefix_space)")
    if steps[-1].get("use_regex", True):
        if len(steps) > 1:
            raise NotByteLevelBPE("it splits twice, by a pattern and by ByteLevel's own")
        return GPT2_PATTERN
    if len(steps) != 2 or steps[0].get("type") != "Split":
        raise NotByteLevelBPE("its pre-tokenizer is not one Split and ByteLevel")
    pattern = steps[0]["pattern"].get("Regex")
    if pattern is None or steps[0]["behavior"] != "Isolated" or steps[0]["invert"]:
        raise NotByteLevelBPE("its Split is not by an isolated regular expression")
    return str(pattern)


def _ranks_of(model: dict[str, Any]) -> dict[bytes, int]:
    """Bytes and results of merges; what else the vocabulary lists, no text can become."""
    if model.get("type") != "BPE":
        raise NotByteLevelBPE(f"its model is {model.get('type')}, not BPE")
    for key in (
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "ignore_merges",
        "byte_fallback",
    ):
        if model.get(key):
            raise NotByteLevelBPE(f"its model has {key}: {model[key]!r}")
    vocab: dict[str, int] = model["vocab"]
    missing = [character for character in BYTE_OF if character not in vocab]
    if missing:
        raise NotByteLevelBPE(f"{len(missing)} of the 256 bytes are not in its vocabulary")
    ranks = {bytes([byte]): vocab[character] for character, byte in BYTE_OF.items()}
    table = str.maketrans({character: chr(byte) for character, byte in BYTE_OF.items()})
    last = -1
    for number, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        id = vocab.get(left + right)
        if id is None or id <= last:
            raise NotByteLevelBPE(f"merge {number} gives id {id} after {last}: ids are not in merge order")
        last = id
        ranks[(left + right).translate(table).encode("latin-1")] = id
    return ranks


def _byte_of_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_of_characters()


@dataclass(frozen=True)
class PatternParts:
    """What in a pattern depends on Unicode tables.

    Args:
        sets: expressions of one character each (``\\p{L}``, ``[^\\s]``, ``(?i:s)``).
        caseless: runs of literals matched in either case (``'ll``).
    """

    sets: tuple[str, ...]
    caseless: tuple[str, ...]


def pattern_parts(pattern: str) -> PatternParts:
    """Take a pattern apart.

    Raises:
        NotByteLevelBPE: it has a construct that the two regex engines may read differently.
    """
    sets: dict[str, None] = {}
    caseless = [""]
    groups, position = [False], 0
    while position < len(pattern):
        match = _SYNTAX.match(pattern, position)
        if match is None:
            raise NotByteLevelBPE(f"its pattern has {pattern[position : position + 8]!r}, not known here")
        position, kind, text = match.end(), match.lastgroup, match.group()
        if kind == "open":
            groups.append(text == "(?i:" or groups[-1])
        elif kind == "close":
            groups.pop()
        if kind in ("characters", "literal"):
            sets[f"(?i:{text})" if groups[-1] else text] = None
        if kind == "literal" and groups[-1]:
            caseless[-1] += text
        elif caseless[-1]:
            caseless.append("")
    return PatternParts(tuple(sets), tuple(filter(None, caseless)))


def is_safe_to_cut(content: dict[str, Any]) -> bool:
    """Whether ``pieces_of`` changes no ids: Qwen's pattern, and no added token that reaches over the cut."""
    try:
        pattern, added = _pattern_of(content.get("pre_tokenizer")), content["added_tokens"]
        reaching = any(token["lstrip"] or token["rstrip"] or "\n" in token["content"] for token in added)
    except (NotByteLevelBPE, KeyError, TypeError, AttributeError):
        return False
    return pattern == QWEN_PATTERN and content.get("normalizer") in (None, {"type": "NFC"}) and not reaching
