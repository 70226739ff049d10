"""Byte-level BPE with Qwen's pre-tokenisation, and a ChatML template that marks what is learned."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, START_OF_TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START_OF_TURN, END_OF_TURN)

# Qwen2/Qwen3's pre-tokenisation pattern: contractions, words, single digits, punctuation, white space.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# {% generation %} marks the assistant's tokens for TRL's assistant_only_loss; the end of the turn is inside.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
logger = logging.getLogger(__name__)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a lossless byte-level BPE on ``texts``.

    Args:
        vocab_size: wished number of ids, special tokens included; a small text can give fewer.

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
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        tqdm(texts, desc="train tokenizer", unit="doc", mininterval=0.5, disable=len(texts) < 50), trainer
    )
    if backend.get_vocab_size() < vocab_size:
        logger.warning("the text gives %d token ids, not %d", backend.get_vocab_size(), vocab_size)
    return wrap(backend)


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """transformers' tokenizer around a trained backend."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[START_OF_TURN, END_OF_TURN],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], batch_size: int = 64
) -> Iterable[list[int]]:
    """Ids of each document, without special tokens.

    Text that spells a control token (``<|im_end|>``) is encoded as the ordinary characters it is.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True  # "encode them as ordinary text"
    progress = tqdm(total=len(texts), desc="tokenize", unit="doc", mininterval=0.5, disable=len(texts) < 50)
    with progress:
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids
            progress.update(len(batch))
