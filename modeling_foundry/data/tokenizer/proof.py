"""Which characters tiktoken and the tokenizers library may treat differently: all 1,112,064 are looked at.

Two regex engines and two NFC implementations meet here, each with Unicode tables of another year.  A pattern
sees characters only through its sets (``\\p{L}``, ``\\s``, ``(?i:s)``), so it splits alike where the sets are
alike; NFC sees them through decompositions, compositions and combining classes.  What differs is *risky*, and a
document that has a risky character is left to the tokenizers library.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from ...files import write_atomically
from .byte_level_bpe import BYTE_OF, ByteLevelBPE, NotByteLevelBPE, pattern_parts
from .encoders import NO_SPECIAL_TOKEN

# Raise it when what is proved, or how, changes.
PROOF_VERSION = 1
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proof:
    """What was found.

    Args:
        risky: characters for which the two may differ.
        unreachable: ids that the tokenizers library never gives, though a merge ends in them.
    """

    risky: frozenset[str]
    unreachable: frozenset[int]


def prove(
    bpe: ByteLevelBPE, backend: Tokenizer, tokenizer_sha256: str, cache_dir: Path | None = None
) -> Proof:
    """Find both, once for each pattern, tokenizer and set of library versions; some ten seconds the first time.

    Args:
        cache_dir: where findings are kept; ``$XDG_CACHE_HOME/modeling_foundry`` where not given.

    Raises:
        NotByteLevelBPE: the pattern can match nothing, or ASCII itself differs.
    """
    if matches_nothing(bpe.pattern):
        raise NotByteLevelBPE("its pattern can match the empty text")
    versions = {name: version(name) for name in ("tokenizers", "tiktoken")}
    key = {"proof": PROOF_VERSION, "unicodedata": unicodedata.unidata_version, **versions}
    folder = cache_dir or default_cache_dir()

    def find_risky() -> set[int]:
        risky = pattern_differences(bpe.pattern) | (normalization_differences() if bpe.is_nfc else set())
        return set(map(ord, risky))

    risky = _cached(folder, {"risky": bpe.pattern, "nfc": bpe.is_nfc, **key}, find_risky)
    unreachable = _cached(
        folder, {"unreachable": tokenizer_sha256, **key}, lambda: unreachable_tokens(bpe, backend)
    )
    proof = Proof(frozenset(map(chr, risky)), frozenset(unreachable))
    if any(character.isascii() for character in proof.risky):
        raise NotByteLevelBPE("tiktoken splits ASCII text otherwise by its pattern")
    return proof


# ---------------------------------------------------------------------------------------------- sweeps


def every_character() -> str:
    """All code points but the surrogates, in order."""
    return "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def pattern_differences(pattern: str) -> set[str]:
    """Characters that are in a set of the pattern for one engine and not for the other."""
    parts = pattern_parts(pattern)
    characters = every_character()
    theirs = _members_in_tokenizers(parts.sets, characters)
    risky = set[str]().union(*(theirs[one] ^ _members_in_tiktoken(one, characters) for one in parts.sets))
    # Oniguruma also folds one character to several ("ß" is "ss" in either case); Rust does not.
    for character in characters:
        folded = character.casefold()
        if len(folded) > 1 and any(folded in literal.casefold() for literal in parts.caseless):
            risky.add(character)
    return risky


def _members_in_tiktoken(one: str, characters: str) -> set[str]:
    """tiktoken passes over what its pattern does not match: the bytes that are left are the members."""
    from tiktoken import Encoding

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = Encoding("bytes", pat_str=one, mergeable_ranks=ranks, special_tokens={NO_SPECIAL_TOKEN: 256})
    ids = encoding.encode_to_numpy(characters, disallowed_special=())
    return set(ids.astype("uint8").tobytes().decode())


def _members_in_tokenizers(sets: Iterable[str], characters: str) -> dict[str, set[str]]:
    """Split by all sets at once: a piece is all in a set or all out of it, as its first character is."""
    runs = [pre_tokenizers.Split(Regex(f"(?:{one})+"), "isolated") for one in sets]
    pieces = [piece for piece, _ in pre_tokenizers.Sequence(runs).pre_tokenize_str(characters)]
    members = {}
    for one in sets:
        without = pre_tokenizers.Split(Regex(one), "removed")
        members[one] = set("".join(piece for piece in pieces if not without.pre_tokenize_str(piece[0])))
    return members


def matches_nothing(pattern: str) -> bool:
    """Whether a match of no characters is possible; the engines go on from it differently."""
    empty = normalizers.Replace(Regex(rf"\A(?=~)(?:{pattern})(?=~)"), "x")
    return empty.normalize_str("~") != "~"


def normalization_differences() -> set[str]:
    """Characters whose decomposition, combining class or composition Python and the library know differently.

    Python decides whether a text is in NFC already.  Assigned characters never change their normalization
    (Unicode's stability policy), so versions differ in newly assigned ones, which have no combining class in
    the older: a mark of a low class after, and of a high class before, shows that.
    """
    characters = [character for character in every_character() if character != "\n"]
    risky = set()
    for before, after in (("", ""), ("", "\u0334"), ("\u0345", "")):
        texts = [f"{before}{character}{after}" for character in characters]
        places = chain(_normalized_otherwise("NFC", texts), _normalized_otherwise("NFD", texts))
        risky |= {characters[place] for place in places}
    decompositions = (unicodedata.decomposition(character).split() for character in characters)
    pairs = [
        "".join(chr(int(code, 16)) for code in codes)
        for codes in decompositions
        if codes and codes[0][0] != "<"
    ]
    risky |= set().union(*(set(pairs[place]) for place in _normalized_otherwise("NFC", pairs)))
    # What the library decomposes and Python does not: the parts compose again there.
    return risky | {
        part for one in risky for part in normalizers.NFD().normalize_str(one) if _unassigned(part)
    }


def _normalized_otherwise(form: Literal["NFC", "NFD"], texts: list[str]) -> Iterator[int]:
    theirs = getattr(normalizers, form)().normalize_str("\n".join(texts)).split("\n")
    for place, (text, normalized) in enumerate(zip(texts, theirs, strict=True)):
        if unicodedata.normalize(form, text) != normalized:
            yield place


def _unassigned(character: str) -> bool:
    return unicodedata.category(character) == "Cn"


def unreachable_tokens(bpe: ByteLevelBPE, backend: Tokenizer) -> set[int]:
    """Tokens whose own bytes do not merge into them.  tiktoken would give them for a whole piece."""
    character_of = {byte: character for character, byte in BYTE_OF.items()}
    words = ["".join(character_of[byte] for byte in token) for token in bpe.ranks]
    model = Tokenizer(backend.model)  # alone: no normalizer, no pieces, no added tokens
    encodings = model.encode_batch_fast(words, add_special_tokens=False)
    ids = zip(bpe.ranks.values(), encodings, strict=True)
    return {id for id, encoding in ids if encoding.ids != [id]}


# ---------------------------------------------------------------------------------------------- cache


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/modeling_foundry``, else the same under ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "modeling_foundry"


def _cached(folder: Path, key: dict[str, Any], find: Callable[[], Iterable[int]]) -> list[int]:
    """What was found for this key before, or what is found now, kept."""
    path = folder / f"tokenizer_proof_{_digest(key)[:16]}.json"
    found = _read_cache(path, key)
    if found is None:
        found = sorted(find())
        content = {"key": key, "found": found, "sha256": _digest([key, found])}
        try:
            write_atomically(path, json.dumps(content) + "\n")
        except OSError as error:  # a read-only home: slower, not wrong
            logger.warning("%s: cannot be written (%s); the next process proves again", path, error.strerror)
    return found


def _read_cache(path: Path, key: dict[str, Any]) -> list[int] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["key"] != key or content["sha256"] != _digest([key, content["found"]]):
            raise ValueError("it is damaged, or of something else")
        return list(content["found"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s: not used, made again (%s)", path, " ".join(str(error).split()))
        return None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
