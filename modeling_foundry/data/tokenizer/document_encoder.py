"""Documents to ids by tiktoken, with the ids of the tokenizers library: proved, then checked on every run.

The reference is the tokenizers library on whole documents, without special tokens; text that spells one
(``<|im_end|>``) stays text.  What is not proved alike goes through the reference and is counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from ...settings import FoundryError
from .byte_level_bpe import NotByteLevelBPE, read_byte_level_bpe
from .control_tokens import ControlTokens
from .encoders import FastEncoder, Ids, ReferenceEncoder

Engine = Literal["auto", "tiktoken", "reference"]
NUM_FIRST_VERIFIED = 20
# The tokenizers library panics at ten million (Oniguruma's retry limit), for each is tried as a line's end.
MOST_BLANKS = 5_000_000
logger = logging.getLogger(__name__)


class UnencodableText(FoundryError):  # noqa: N818 - it says what the text is
    """A text that has no ids: with a lone surrogate, or with blanks beyond what the library's regex takes.

    Args:
        number: place of the document among those given.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"document {number}: {reason}")
        self.number, self.reason = number, reason


@dataclass
class Share:
    """Documents and bytes (UTF-8) that went one way."""

    documents: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Mismatch:
    """A document for which the two engines gave different ids.

    Args:
        sha256: of its UTF-8 bytes.
        position: first token that differs.
    """

    sha256: str
    position: int


class DocumentEncoder:
    """Documents to ids.  Built by :meth:`load`, one in each process.

    Attributes:
        engine: ``tiktoken``, or ``reference`` where that is not proved or was found to differ.
        fast: what went through tiktoken.
        slow: what went through the reference, by reason.
        num_verified: documents encoded by both.
        mismatches: documents for which they differed.  After the first, everything goes through the
            reference; what earlier calls of :meth:`encode` returned should be made again.
    """

    def __init__(
        self,
        path: Path,
        reference: ReferenceEncoder,
        fast: FastEncoder | None,
        content: dict[str, Any],
        sha256: str,
        verify_sample_every: int,
    ) -> None:
        self._path, self._reference, self._fast = path, reference, fast
        self.sha256, self.verify_sample_every = sha256, verify_sample_every
        self.vocab_size = max(reference.backend.get_vocab(with_added_tokens=True).values()) + 1
        self._controls = ControlTokens(content, self.vocab_size)
        self.fast, self.slow = Share(), defaultdict[str, Share](Share)
        self.num_verified = 0
        self.mismatches: list[Mismatch] = []

    @classmethod
    def load(
        cls,
        path: str | Path,
        engine: Engine = "auto",
        cache_dir: str | Path | None = None,
        verify_sample_every: int = 100,
    ) -> DocumentEncoder:
        """Load a tokenizer folder or its ``tokenizer.json``.

        Args:
            engine: ``auto`` takes tiktoken where its ids are proved the same and else says in a warning why
                not; ``tiktoken`` makes that an error; ``reference`` takes the tokenizers library.
            cache_dir: where the proof is kept; a folder of the user's cache where not given.
            verify_sample_every: one document in so many, by a hash of its bytes, is encoded by both.

        Raises:
            FoundryError: no such file, not a tokenizer, or ``tiktoken`` is wished and not proved.
        """
        if verify_sample_every < 1:
            raise FoundryError(f"verify_sample_every: expected at least 1, found {verify_sample_every}")
        path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        raw, content, backend = _read(path)
        sha256 = hashlib.sha256(raw).hexdigest()
        reference, fast = ReferenceEncoder(backend, content), None
        if engine != "reference":
            try:
                fast = _proved_encoder(content, backend, sha256, cache_dir)
            except NotByteLevelBPE as reason:
                if engine == "tiktoken":
                    raise FoundryError(f"{path}: engine: tiktoken cannot be used, {reason}") from reason
                logger.warning("%s: encoded by the slower tokenizers library, since %s", path, reason)
        return cls(path, reference, fast, content, sha256, verify_sample_every)

    @property
    def engine(self) -> Literal["tiktoken", "reference"]:
        return "reference" if self._fast is None else "tiktoken"

    @property
    def eos_token_id(self) -> int:
        """Id of the end-of-sequence token that ``tokenizer_config.json`` names.

        Raises:
            FoundryError: it names none, or one that is not in the vocabulary.
        """
        path = self._path.with_name("tokenizer_config.json")
        try:
            token = json.loads(path.read_text(encoding="utf-8"))["eos_token"]
            token = token["content"] if isinstance(token, dict) else token
            id = self._reference.backend.token_to_id(token)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FoundryError(
                f"{path}: eos_token: missing; expected the token that ends a document"
            ) from error
        if id is None:
            raise FoundryError(f"{path}: eos_token: {token!r} is not in the vocabulary")
        return int(id)

    def token_id(self, token: str) -> int | None:
        """Id of one token of the vocabulary, special ones too."""
        return self._reference.backend.token_to_id(token)

    def control_token_in(self, ids: Ids, eos_token_id: int) -> str | None:
        """The first control token, or end of sequence, that the text of a document became."""
        if (ids == eos_token_id).any():
            return self._reference.backend.id_to_token(eos_token_id)
        return self._controls.first_in(ids)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each document, uint32, shape (tokens of the document,), without special tokens.

        Raises:
            UnencodableText: naming the first document that has no ids; none is encoded then.
        """
        contents = [_checked(number, text) for number, text in enumerate(texts)]
        results = [self._try_fast(text) for text in texts]
        self._verify(texts, contents, results)
        left = [number for number, result in enumerate(results) if isinstance(result, str)]
        made = dict(zip(left, self._reference.encode([texts[number] for number in left]), strict=True))
        for result, content in zip(results, contents, strict=True):
            share = self.slow[result] if isinstance(result, str) else self.fast
            share.documents += 1
            share.bytes += len(content)
        return [made[n] if isinstance(result, str) else result for n, result in enumerate(results)]

    def encode_reference(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each document by the tokenizers library, not counted; raises as :meth:`encode` does."""
        for number, text in enumerate(texts):
            _checked(number, text)
        return self._reference.encode(texts)

    def _try_fast(self, text: str) -> Ids | str:
        if self._fast is not None:
            return self._fast.encode(text)
        return "mismatch found before" if self.mismatches else "engine"

    def _verify(self, texts: Sequence[str], contents: Sequence[bytes], results: list[Ids | str]) -> None:
        """Encode a sample by the reference too; where it differs, leave all of these texts to it."""
        fast = [number for number, result in enumerate(results) if not isinstance(result, str)]
        sample = [number for number in fast if self._is_sampled(number, contents[number])]
        for number, expected in zip(sample, self._reference.encode([texts[n] for n in sample]), strict=True):
            found = results[number]
            if isinstance(found, str) or np.array_equal(found, expected):
                continue
            mismatch = Mismatch(
                hashlib.sha256(contents[number]).hexdigest(), _first_difference(found, expected)
            )
            self.mismatches.append(mismatch)
            logger.warning(
                "%s: tiktoken gives other ids than the tokenizers library from token %d on for the document "
                "with SHA-256 %s; from here on the slower library encodes",
                self._path, mismatch.position, mismatch.sha256,
            )  # fmt: skip
        if self.mismatches and self._fast is not None:
            self._fast = None
            for number in fast:
                results[number] = "mismatch found"

    def _is_sampled(self, number: int, content: bytes) -> bool:
        digest = hashlib.sha256(content).digest()
        chosen = int.from_bytes(digest[:8], "big") % self.verify_sample_every == 0
        if chosen or self.num_verified < NUM_FIRST_VERIFIED:
            self.num_verified += 1
            return True
        return False


def _read(path: Path) -> tuple[bytes, dict[str, Any], Tokenizer]:
    try:
        raw = path.read_bytes()
        return raw, json.loads(raw), Tokenizer.from_str(raw.decode())
    except OSError as error:
        raise FoundryError(f"{path}: cannot read the tokenizer ({error.strerror})") from error
    except BaseException as error:  # the library raises Exception itself, and panics are not even that
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FoundryError(f"{path}: not a tokenizer.json ({' '.join(str(error).split())[:300]})") from error


def _proved_encoder(
    content: dict[str, Any], backend: Tokenizer, sha256: str, cache_dir: str | Path | None
) -> FastEncoder:
    try:
        import tiktoken  # noqa: F401
    except ImportError as error:
        raise NotByteLevelBPE("tiktoken is not installed") from error
    from .proof import prove

    bpe = read_byte_level_bpe(content)
    proof = prove(bpe, backend, sha256, Path(cache_dir) if cache_dir is not None else None)
    return FastEncoder(bpe, backend.normalizer, proof.risky, proof.unreachable)


def _checked(number: int, text: str) -> bytes:
    """UTF-8 of a text that can be encoded."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        reason = f"lone surrogate U+{code:04X} at character {error.start}, which is not text"
        raise UnencodableText(number, reason) from error
    if len(text) > MOST_BLANKS:
        longest = max((len(run.group()) for run in re.finditer(r"\s+", text)), default=0)
        if longest > MOST_BLANKS:
            raise UnencodableText(number, f"{longest} blanks in a row, more than {MOST_BLANKS}")
    return content


def _first_difference(found: Ids, expected: Ids) -> int:
    length = min(len(found), len(expected))
    different = np.flatnonzero(found[:length] != expected[:length])
    return int(different[0]) if len(different) else length
