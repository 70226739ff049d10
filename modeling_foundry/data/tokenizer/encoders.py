"""The two ways from a text to ids: the tokenizers library, and tiktoken where it is proved alike."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from .byte_level_bpe import ByteLevelBPE, is_safe_to_cut
from .training import BATCH_CHARACTERS, batches_of, pieces_of

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.uint32]
# No text is searched for it: tiktoken wants at least one special token.
NO_SPECIAL_TOKEN = "\x00\uffff never a token \uffff\x00"


class ReferenceEncoder:
    """The tokenizers library on ordinary text: no special tokens, no truncation, long texts cut where that is safe."""

    def __init__(self, backend: Tokenizer, content: dict[str, Any]) -> None:
        backend.encode_special_tokens = True  # "encode them as ordinary text"
        backend.no_truncation()
        backend.no_padding()
        self.backend, self._is_cut = backend, is_safe_to_cut(content)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text."""
        documents = []
        for batch in batches_of(texts):
            pieces = [pieces_of(text) if self._is_cut else [text] for text in batch]
            encodings = iter(self.backend.encode_batch_fast(list(chain(*pieces)), add_special_tokens=False))
            for own in pieces:
                parts = [np.array(next(encodings).ids, dtype=np.uint32) for _ in own]
                documents.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return documents


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Iterator[Ids]:
    """Ids of each document in turn, uint32, without special tokens, with a bar where there are many.

    Text that spells a control token (``<|im_end|>``) is encoded as the ordinary characters it is.
    """
    content = tokenizer.backend_tokenizer.to_str()
    encoder = ReferenceEncoder(Tokenizer.from_str(content), json.loads(content))
    num_characters = sum(map(len, texts))
    progress = tqdm(
        total=num_characters, desc="tokenize", unit="char", unit_scale=True, mininterval=0.5,
        disable=num_characters < BATCH_CHARACTERS,
    )  # fmt: skip
    with progress:
        for batch in batches_of(texts):
            for text, ids in zip(batch, encoder.encode(batch), strict=True):
                yield ids
                progress.update(len(text))


class FastEncoder:
    """tiktoken with the ranks and pattern of a byte-level BPE, for texts it is proved for.

    Args:
        risky: characters that send a text to the reference.
        unreachable: ids left out of the ranks.
    """

    def __init__(
        self, bpe: ByteLevelBPE, normalizer: Any, risky: frozenset[str], unreachable: frozenset[int]
    ) -> None:
        from tiktoken import Encoding

        ranks = {token: id for token, id in bpe.ranks.items() if id not in unreachable}
        num_ids = max(ranks.values()) + 1
        self._encoding = Encoding(
            "foundry", pat_str=bpe.pattern, mergeable_ranks=ranks, special_tokens={NO_SPECIAL_TOKEN: num_ids}
        )
        self._lengths = np.zeros(num_ids, dtype=np.uint32)
        self._lengths[list(ranks.values())] = [len(token) for token in ranks]
        self._is_nfc, self._normalizer = bpe.is_nfc, normalizer
        self._is_risky = np.zeros(0x110000, dtype=bool)
        self._is_risky[[ord(character) for character in risky]] = True
        self._spelled = _any_of(bpe.spelled_tokens)
        self._spelled_nfc = _any_of({unicodedata.normalize("NFC", token) for token in bpe.spelled_tokens})

    def encode(self, text: str) -> Ids | str:
        """Ids of a text without lone surrogates, or why they must come from the reference."""
        if self._spelled.search(text):
            return "added token spelled in the text"
        if not text.isascii():
            if self._has_risky(text):
                return "character not proved alike"
            if self._is_nfc and not unicodedata.is_normalized("NFC", text):
                text = self._normalized(text)
                if self._has_risky(text):
                    return "character not proved alike"
                if self._spelled_nfc.search(text):
                    return "added token spelled in the text"
        try:
            ids: Ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # the regex engine's stack: some 100,000 blanks in a row
            return "run of blanks too long"
        num_bytes = len(text) if text.isascii() else len(text.encode())
        if int(self._lengths[ids].sum(dtype=np.int64)) != num_bytes:
            return "text that the pattern does not cover"
        return ids

    def _normalized(self, text: str) -> str:
        """NFC by the tokenizers library's own tables, piece by piece: it needs 30 bytes for each of the text."""
        normalized = (
            piece if unicodedata.is_normalized("NFC", piece) else self._normalizer.normalize_str(piece)
            for piece in pieces_of(text)
        )  # fmt: skip
        return "".join(normalized)

    def _has_risky(self, text: str) -> bool:
        """By table: ten times as fast as a regular expression with some hundred characters."""
        parts = (text[start : start + BATCH_CHARACTERS] for start in range(0, len(text), BATCH_CHARACTERS))
        return any(
            bool(self._is_risky[np.frombuffer(part.encode("utf-32-le"), "<u4")].any()) for part in parts
        )


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds one of the words; finds nothing where there is none."""
    return re.compile("|".join(map(re.escape, sorted(words, reverse=True))) or r"(?!)")
