"""The tokenizer loses nothing, and text cannot turn into control tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.tokenizer import END_OF_TURN, SPECIAL_TOKENS, encode_documents, train_tokenizer

TEXTS = ["def add(left, right):\n    return left + right\n" * 20, "class Node:\n    pass\n" * 20]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    import unicodedata

    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(0 <= id < len(tokenizer) for id in ids)


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_that_spells_a_control_token_stays_text(tokenizer, token):
    control = tokenizer.convert_tokens_to_ids(token)
    (ids,) = encode_documents(tokenizer, [f"a = '{token}'"])
    assert control not in ids
    assert tokenizer.decode(ids) == f"a = '{token}'"
    assert tokenizer(token)["input_ids"] == [control], "the template itself still can"


def test_the_template_marks_the_answer_and_its_end(tokenizer):
    messages = [
        {"role": "user", "content": "def f():"},
        {"role": "assistant", "content": "Return nothing."},
        {"role": "user", "content": "def g():"},
        {"role": "assistant", "content": "Return more."},
    ]
    encoded = tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    learned = [id for id, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(learned) == f"Return nothing.{END_OF_TURN}Return more.{END_OF_TURN}"
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages[:2], tokenize=False)
    assert whole.startswith(prompt)
    assert prompt == "<|im_start|>user\ndef f():<|im_end|>\n<|im_start|>assistant\n"


def test_it_is_saved_and_loaded_as_it_was(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    assert loaded(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_the_pattern_is_qwens(tokenizer):
    """One token never crosses a digit or a word boundary."""
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x1 = 2024 + don't\n\n")
    words = [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in pieces]
    assert words == ["x", "1", " =", " ", "2", "0", "2", "4", " +", " don", "'t", "\n\n"]


def test_a_small_text_gives_a_smaller_vocabulary_and_says_so(caplog):
    small = train_tokenizer(["abc"], vocab_size=2048)
    assert len(small) < 300
    assert "not 2048" in caplog.text
