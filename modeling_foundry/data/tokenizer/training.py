"""Byte-level BPE with Qwen's pre-tokenisation, and a ChatML template that marks what is learned."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm

if TYPE_CHECKING:  # imported where it is used: it takes seconds, and "nothing to do" should not
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

# Qwen2/Qwen3's pre-tokenisation pattern: contractions, words, single digits, punctuation, white space.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Between a newline and a letter, digit or ASCII mark the pattern always ends a piece, and NFC joins nothing over
# it: text cut there has the same ids as text in one piece.
SAFE_CUT = re.compile(r"\n(?=[\w!-/:-@\[-`{-~])")
PIECE_CHARACTERS = 20_000
BATCH_CHARACTERS = 1_000_000
# The trainer moves the rest of a word at every merge in it: the time of one of a megabyte (DNA, a line of dashes) is
# its length squared.  No word of a language is as long.
LONGEST_WORD = 1_000
# Beginnings of what the pattern keeps together: letters, marks, blanks.
LONG_WORDS = re.compile(
    "|".join(rf"{one}{{{LONGEST_WORD}}}(?={one})" for one in (r"[^\W\d_]", r"(?:[^\w\s]|_)", r"\s"))
)

# {% generation %} marks the assistant's tokens for TRL's assistant_only_loss; the end of the turn is inside.
# What a message spells is not obeyed: a space breaks control tokens inside a role or a content, because
# transformers encodes the rendered conversation as one text in which they would be real.
CHAT_TEMPLATE = (
    "{%- macro plain(text) %}"
    "{%- if text is not string %}{{- raise_exception('a role or a content is not text') }}{%- endif %}{{- text"
    + "".join(f" | replace('{token}', '<| {token[2:-2]} |>')" for token in SPECIAL_TOKENS)
    + " }}{%- endmacro %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + plain(message['role']) + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- plain(message['content']) + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- plain(message['content']) + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
logger = logging.getLogger(__name__)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts``; any text comes back from its ids in NFC.

    Args:
        texts: those of words longer than ``LONGEST_WORD`` are cut there, which a warning says.
        vocab_size: wished number of ids, special tokens included.  Only what occurs twice becomes a token, so
            a small text gives fewer, and a warning says so.

    Returns:
        A tokenizer whose end-of-sequence and padding token is ``<|endoftext|>``, with a chat template.
    """
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bar = tqdm(texts, desc="train tokenizer", unit="doc", mininterval=0.5, disable=len(texts) < 50)
    num_cuts = 0

    def trained_on() -> Iterator[list[str]]:
        nonlocal num_cuts
        for text in bar:
            parts = cut_long_words(text)
            num_cuts += len(parts) - 1
            yield parts

    backend.train_from_iterator(trained_on(), trainer)
    if num_cuts:
        logger.warning(
            "tokenizer: words of more than %s characters were cut for its training, %s times",
            f"{LONGEST_WORD:,}", f"{num_cuts:,}",
        )  # fmt: skip
    if backend.get_vocab_size() < vocab_size:
        logger.warning("tokenizer: the text gives %d token ids, not %d", backend.get_vocab_size(), vocab_size)
    return wrap(backend)


def cut_long_words(text: str) -> list[str]:
    """The text in parts, cut in its words of more than ``LONGEST_WORD`` characters and nowhere else."""
    ends = [found.end() for found in LONG_WORDS.finditer(text)] if _may_be_long(text) else []
    return [text[start:end] for start, end in pairwise([0, *ends, len(text)])]


def _may_be_long(text: str) -> bool:
    """Said in a hundredth of the time that looking for it takes."""
    return " " * LONGEST_WORD in text or max(map(len, text.split(" ")), default=0) > LONGEST_WORD


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer around a trained backend."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN, END_OF_TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a prepared folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def batches_of(texts: Iterable[str], num_characters: int = BATCH_CHARACTERS) -> Iterator[list[str]]:
    """Texts in lists of at most so many characters: enough to work side by side, little to hold.

    A larger text is a list of its own.
    """
    batch: list[str] = []
    held = 0
    for text in texts:
        if batch and held + len(text) > num_characters:
            yield batch
            batch, held = [], 0
        batch.append(text)
        held += len(text)
    if batch:
        yield batch


def pieces_of(text: str, size: int = PIECE_CHARACTERS) -> list[str]:
    """Cut a text where its ids do not change by it, into pieces of about ``size`` characters.

    The pieces of one large document are encoded side by side; joined, their ids are those of the whole.
    """
    pieces, start = [], 0
    while len(text) - start > size:
        match = SAFE_CUT.search(text, start + size)
        if match is None:
            break
        pieces.append(text[start : match.end()])
        start = match.end()
    return [*pieces, text[start:]]
