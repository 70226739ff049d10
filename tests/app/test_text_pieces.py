"""Text streams as it is made, whatever it is written in."""

import base64
import random

import pytest
import torch
from hypothesis import given, settings, strategies
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer as Llama 2's: blanks as ▁, and bytes where a character is no token."""
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", *BYTES, "▁", "a", "▁b", "▁▁c"])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def pieces(tokenizer, ids):
    """What is said with each token, and at the end."""
    from text_pieces import TextPieces

    streamer, said = TextPieces(tokenizer), []
    streamer.put(torch.tensor([[5, 6, 7]]))

    def new():
        text = ""
        while not streamer.pieces.empty():
            text += streamer.pieces.get() or ""
        return text

    for token in ids:
        streamer.put(torch.tensor([token]))
        said.append(new())
    streamer.end()
    return said, new()


TEXTS = {
    "chinese": "模型在训练中学到的东西都在它的权重里",
    "base64": base64.b64encode(bytes(range(90))).decode(),
    "code": "a_very_long_name.of(something)[0:1]=another_long_name",
    "japanese": "ひらがなとカタカナ",
    "korean": "한국어로된문장",
    "thai": "ภาษาไทยไม่มีช่องว่าง",
    "emoji": "🙂🙃👩‍🚀é",
    "blanks": "one two\n\n  three",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_token_is_said_as_soon_as_its_characters_are_whole(chat, text):
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    said, last = pieces(chat.tokenizer, ids)
    assert "".join(said) == chat.tokenizer.decode(ids)
    assert last == ""
    for place in range(len(ids)):
        whole = chat.tokenizer.decode(ids[: place + 1])
        assert "".join(said[: place + 1]) == whole.rstrip("\ufffd")
    assert sum(map(bool, said)) >= len(text) // 3


@settings(max_examples=60)
@given(ids=strategies.lists(strategies.integers(3, 288), max_size=30))
def test_any_tokens_say_what_they_decode_to(chat, ids):
    said, last = pieces(chat.tokenizer, ids)
    assert "".join(said) + last == chat.tokenizer.decode(ids, skip_special_tokens=True)


def test_bytes_that_never_become_a_character_do_not_wait_for_the_end(chat):
    byte = chat.tokenizer.convert_tokens_to_ids("ÿ")  # 0xFF: in no UTF-8
    said, _ = pieces(chat.tokenizer, [byte] * 50)
    assert "".join(said[:10]) == "\ufffd" * 7


def test_bytes_of_a_sentencepiece_tokenizer_that_are_no_character(byte_fallback):
    ids = [byte_fallback.convert_tokens_to_ids("<0xFF>")] * 20 + [byte_fallback.convert_tokens_to_ids("a")]
    said, last = pieces(byte_fallback, ids)
    assert "".join(said) + last == byte_fallback.decode(ids) == "\ufffd" * 20 + "a"
    assert len("".join(said[:10])) == 7


def test_blanks_and_bytes_of_a_sentencepiece_tokenizer(byte_fallback):
    text = "a b  c中🙂 b"
    ids = []
    for part in ("a", "▁b", "▁▁c", *[f"<0x{byte:02X}>" for byte in "中🙂".encode()], "▁b"):
        ids.append(byte_fallback.convert_tokens_to_ids(part))
    said, last = pieces(byte_fallback, ids)
    assert "".join(said) + last == byte_fallback.decode(ids) == text
    assert said[:3] == ["a", " b", "  c"]
    assert said[-1] == " b"


def test_special_tokens_are_not_said(chat):
    ids = chat.tokenizer("def add", add_special_tokens=False)["input_ids"]
    mixed = [2, *ids[:1], 2, 2, *ids[1:], 2]
    said, last = pieces(chat.tokenizer, mixed)
    assert "".join(said) + last == "def add"


@pytest.mark.parametrize("seed", range(3))
def test_long_answers_are_decoded_a_few_tokens_at_a_time(chat, monkeypatch, seed):
    """Decoding all of them for each would take time in their square."""
    ids = random.Random(seed).choices(chat.tokenizer("def add(left, right)")["input_ids"], k=500)
    lengths = []
    decode = chat.tokenizer.decode
    monkeypatch.setattr(
        chat.tokenizer,
        "decode",
        lambda tokens, **options: lengths.append(len(tokens)) or decode(tokens, **options),
    )
    pieces(chat.tokenizer, ids)
    assert max(lengths) < 12
