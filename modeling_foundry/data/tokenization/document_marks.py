"""What every document of a corpus begins and ends with, and whether the tokenizer's users will have the same."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from ...settings import FoundryError
from ..tokenizer.class_check import TOKENIZER_FILES, tokens_around
from ..tokenizer.document_encoder import DocumentEncoder
from .settings import TokenizeSettings


def end_of_document(settings: TokenizeSettings, tokenizer: Path) -> int:
    """Id of the token that ends every document.

    Raises:
        FoundryError: the tokenizer has no such token.
    """
    encoder = DocumentEncoder.load(tokenizer, "reference")
    if settings.eos_token is None:
        return int(encoder.eos_token_id)
    id = encoder.token_id(settings.eos_token)
    if id is None:
        raise FoundryError(f"eos_token: {settings.eos_token} is not a token of {settings.tokenizer}")
    return int(id)


def start_of_document(settings: TokenizeSettings, tokenizer: Path) -> tuple[int, ...]:
    """The ids that every document begins with, none unless asked for.

    Raises:
        FoundryError: AutoTokenizer puts not one token before a text.
    """
    if not settings.add_bos:
        return ()
    before, _ = tokens_around(tokenizer, TOKENIZER_FILES)
    if len(before) != 1:
        raise FoundryError(
            f"add_bos: AutoTokenizer puts {len(before)} tokens before a text of {settings.tokenizer}, expected one"
        )
    return tuple(before)


def say_what_is_not_added(
    console: Console, tokenizer: Path, eos_token_id: int, prefix: tuple[int, ...]
) -> None:
    """One line where users' texts will begin or end with tokens that the documents here do not have."""
    before, behind = tokens_around(tokenizer, TOKENIZER_FILES)
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def names(*ids: int) -> str:
        return " ".join(str(backend.id_to_token(id)) for id in ids)

    said = []
    if before and tuple(before) != prefix:
        remedy = "; --add_bos=true puts it there" if len(before) == 1 else ""
        said.append(f"{names(*before)} before every text, and documents here begin without it{remedy}")
    if behind not in ([], [eos_token_id]):
        said.append(f"{names(*behind)} behind every text, and documents here end with {names(eos_token_id)}")
    if said:
        console.print(f"tokenize: {tokenizer}: AutoTokenizer puts {'; it puts '.join(said)}")
