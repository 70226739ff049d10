"""Control tokens that ordinary text can become, whatever the tokenizers library is told about special tokens.

``encode_special_tokens`` leaves a spelling to the model, and a model may hold it whole: the pieces of a Unigram, the
words of a WordPiece or of a BPE with ``ignore_merges``, the merges of a BPE whose pattern does not divide it.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class ControlTokens:
    """The tokens marked special, but for what stands for unknown text and for single bytes.

    Args:
        content: a parsed ``tokenizer.json``.
        num_ids: one more than the largest id.
    """

    def __init__(self, content: dict[str, Any], num_ids: int) -> None:
        model = content.get("model", {})
        ordinary = {model.get("unk_token"), *_piece(model, model.get("unk_id"))}
        self._tokens = {
            token["id"]: token["content"]
            for token in content.get("added_tokens", [])
            if token.get("special") and token["content"] not in ordinary
            and not (model.get("byte_fallback") and BYTE_TOKEN.fullmatch(token["content"]))
        }  # fmt: skip
        self._is_control = np.zeros(num_ids, dtype=bool)
        self._is_control[list(self._tokens)] = True

    def first_in(self, ids: NDArray[np.unsignedinteger]) -> str | None:
        """The first control token among the ids of a document."""
        found = self._is_control[ids]
        return self._tokens[int(ids[found.argmax()])] if found.any() else None


def _piece(model: dict[str, Any], number: Any) -> list[str]:
    """The Unigram piece with that number."""
    return [model["vocab"][number][0]] if isinstance(number, int) else []
