"""tiktoken gives the ids of the tokenizers library, whatever the text; where it might not, it is not asked."""

import json
import logging
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from modeling_foundry.data.preparation.standard_library import read_standard_library
from modeling_foundry.data.tokenizer import (
    document_encoder as fast_tokenizer,
)
from modeling_foundry.data.tokenizer import (
    proof as tokenizer_proof,
)
from modeling_foundry.data.tokenizer.byte_level_bpe import (
    GPT2_PATTERN,
    NotByteLevelBPE,
    PatternParts,
    pattern_parts,
    read_byte_level_bpe,
)
from modeling_foundry.data.tokenizer.document_encoder import DocumentEncoder, UnencodableText
from modeling_foundry.data.tokenizer.encoders import encode_documents
from modeling_foundry.data.tokenizer.proof import (
    default_cache_dir,
    every_character,
    pattern_differences,
)
from modeling_foundry.data.tokenizer.training import QWEN_PATTERN, SPECIAL_TOKENS, train_tokenizer
from modeling_foundry.files import sha256_of_file
from modeling_foundry.settings import FoundryError

TEXTS = ["def add(left, right):\n    return left + right  # don't\n" * 20, "class Node:\n    été = 1\n" * 20]
SPELLED = ("<think>", "</think>")  # added, not special: the library matches them in ordinary text


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a tokenizer of 330 ids, two of them added ones that are not special."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(TEXTS, vocab_size=328)
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in SPELLED])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Folder of a tokenizer of 8,192 ids, trained on a part of the standard library."""
    folder = tmp_path_factory.mktemp("large")
    modules, _ = read_standard_library(max_modules=150)
    train_tokenizer([module.text for module in modules], vocab_size=8192).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["tiny", "large"])
def encoder(request, cache_dir):
    return DocumentEncoder.load(request.getfixturevalue(request.param), "tiktoken", cache_dir)


@pytest.fixture
def tiny_encoder(tiny, cache_dir):
    """A fresh one, whose counts begin at nought."""
    return DocumentEncoder.load(tiny, "tiktoken", cache_dir)


def assert_same(encoder, text):
    """The two engines agree on a text, or the first is not asked."""
    (expected,) = encoder.encode_reference([text])
    found = encoder._fast.encode(text)
    assert isinstance(found, str) or found.tolist() == expected.tolist()
    (ids,) = encoder.encode([text])
    assert ids.dtype == np.uint32
    assert ids.tolist() == expected.tolist()


# ------------------------------------------------------------------------------------------ identity

FRAGMENTS = {
    "NFC": [
        "é", "e\u0301", "\u212b", "\u1e9b\u0323", "\uac00", "\u1100\u1161\u11a8", "\u0958", "\u2126", "\ufb01", "ß",
    ],
    "marks": [
        "\u0301", "\u0316\u0301", "\u0345", "\u0334", "\u0898", "\u09fe", "\u20dd", "\u0f71\u0f74", "\u05b0", "\u3099",
    ],
    "surrogate-like": [
        "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\\ud83d", "\x00", "\x80", "\u0110",
    ],
    "blanks": [
        " ", "  ", " " * 300, "\n", "\r\n", "\n\n \n", "\t", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u180e",
        "\u2028", "\u3000", "\ufeff",
    ],
    "digits": ["7", "2024", "³", "½", "Ⅻ", "٣", "१", "𝟘", "〇", "1" * 50],
    "emoji": ["😀", "👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "1️⃣"],
    "CJK": ["中文", "日本語", "한국어", "が", "㍿", "𠀀", "。"],
    "special": [*SPECIAL_TOKENS, *SPELLED, "<|im_", "end|>", "<|", "|>", "<", "<think", "<|im_end|><|im_end|>"],
    "contractions": ["'s", "'S", "'ſ", "'ll", "'LL", "'re", "'K", "'\u212a", "don't", "DON'T", "'"],
    "code": ["def f(x):", "x", ".", "_", "^^^", "--", "été", "Ω", "Я", "ا", "א"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", FRAGMENTS)
def test_each_class_of_text_has_the_same_ids(encoder, kind):
    words = st.sampled_from(FRAGMENTS[kind]) | st.sampled_from([" ", "a", "1", ".", "\n", "'"])

    @given(st.lists(words, max_size=30).map("".join))
    def check(text):
        assert_same(encoder, text)

    check()


ALL_FRAGMENTS = st.sampled_from([fragment for fragments in FRAGMENTS.values() for fragment in fragments])
ANY_CHARACTER = st.characters(exclude_categories=["Cs"])
MIXED_TEXT = st.lists(ALL_FRAGMENTS | ANY_CHARACTER, max_size=40).map("".join)


@settings(max_examples=500)
@given(MIXED_TEXT)
def test_all_classes_mixed_have_the_same_ids(encoder, text):
    assert_same(encoder, text)


def test_the_fuzz_did_not_go_round_tiktoken(encoder):
    """Most texts above were really encoded by it."""
    for text in (fragment for fragments in FRAGMENTS.values() for fragment in fragments):
        encoder.encode([text + " x"])
    assert encoder.engine == "tiktoken"
    assert encoder.fast.documents > 5 * sum(share.documents for share in encoder.slow.values())


@pytest.mark.slow
def test_every_character_in_every_context_has_the_same_ids(tiny_encoder):
    """1,112,064 characters, the assigned ones in eight contexts each; what the proof calls risky is left out.

    The others are of one category, and in the proof as well: one context stands for all.
    """
    risky = {chr(code) for code in np.flatnonzero(tiny_encoder._fast._is_risky)}
    characters = [character for character in every_character() if character not in risky]
    assigned = [one for one in characters if unicodedata.category(one) not in ("Cn", "Co")]
    for context in ("{}", " {}", "1{}1", "'{}", "{0}{0}", "\n{} x", ".{}"):
        assert_same_blocks(tiny_encoder, assigned, context)
    assert_same_blocks(tiny_encoder, characters, "a{}b")


def assert_same_blocks(encoder, characters, context):
    for start in range(0, len(characters), 32_768):
        block = characters[start : start + 32_768]
        text = "\n".join(context.format(one) for one in block)
        found = encoder._fast.encode(text)
        (expected,) = encoder.encode_reference([text])
        assert not isinstance(found, str)
        assert np.array_equal(found, expected), f"{context} from U+{ord(block[0]):04X}"


def test_the_reference_is_the_slow_path_of_the_quickstart(tiny, tiny_encoder):
    from modeling_foundry.data.tokenizer.training import load_tokenizer

    texts = [*TEXTS, "", "a = 1\n" * 9000, "<|im_end|> <think>"]
    expected = [ids.tolist() for ids in encode_documents(load_tokenizer(tiny), texts)]
    assert [ids.tolist() for ids in tiny_encoder.encode_reference(texts)] == expected
    assert [ids.tolist() for ids in tiny_encoder.encode(texts)] == expected


@pytest.mark.slow
def test_a_tokenizer_as_gpt2s_is_proved_too(tmp_path, cache_dir):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save(tmp_path, train_tokenizer_of(backend))
    encoder = DocumentEncoder.load(tmp_path, "tiktoken", cache_dir)
    for text in ("don't DON'T", "a  b \n\n c\n x", "e\u0301 \u0898", "123 ^^ \x85", "x" + " " * 50):
        found = encoder._fast.encode(text)
        assert not isinstance(found, str)
        assert found.tolist() == encoder.encode_reference([text])[0].tolist()


def train_tokenizer_of(backend):
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def save(folder, backend):
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "a"}')


def test_a_token_that_its_own_bytes_do_not_give_is_left_out(tiny, tmp_path, cache_dir):
    """``abc`` is listed as ab + c, but b + c comes first: the library gives a + bc, a whole-piece look-up not."""
    content = json.loads((tiny / "tokenizer.json").read_text())
    vocab = {token: id for token, id in content["model"]["vocab"].items() if len(token) == 1}
    start = max(vocab.values())
    vocab |= {"bc": start + 1, "ab": start + 2, "abc": start + 3}
    content["model"] |= {"vocab": vocab, "merges": [["b", "c"], ["a", "b"], ["ab", "c"]]}
    content["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    encoder = DocumentEncoder.load(tmp_path, "tiktoken", cache_dir)
    found = encoder._fast.encode("abc ab")
    assert found.tolist() == [vocab["a"], vocab["bc"], vocab["Ġ"], vocab["ab"]]
    assert found.tolist() == encoder.encode_reference(["abc ab"])[0].tolist()


# ------------------------------------------------------------------------------------ control tokens


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_that_spells_a_control_token_stays_text(tiny_encoder, token):
    control = tiny_encoder._reference.backend.token_to_id(token)
    for ids in tiny_encoder.encode([token, f"a = '{token}'", token * 3, f"\n{token}\n"]):
        assert control not in ids
    assert tiny_encoder.fast.documents == 4


def test_an_added_token_that_is_not_special_is_the_references_business(tiny_encoder):
    (ids,) = tiny_encoder.encode(["so <think>\nwell"])
    assert tiny_encoder._reference.backend.token_to_id("<think>") in ids
    assert tiny_encoder.slow["added token spelled in the text"].documents == 1


def test_a_risky_character_goes_through_the_reference(tiny_encoder):
    code = int(np.flatnonzero(tiny_encoder._fast._is_risky)[0])
    text = f"été {chr(code)} x"
    tiny_encoder.encode([text])
    share = tiny_encoder.slow["character not proved alike"]
    assert (share.documents, share.bytes) == (1, len(text.encode()))


# ------------------------------------------------------------------------------------------ sampling


@pytest.fixture
def sabotaged(tiny_encoder, monkeypatch):
    """tiktoken's last id is wrong where the text has the word."""
    real = tiny_encoder._fast.encode

    def wrong(text):
        ids = real(text)
        return np.concatenate([ids[:-1], ids[-1:] + 1]) if "sabotage" in text else ids

    monkeypatch.setattr(tiny_encoder._fast, "encode", wrong)
    return tiny_encoder


def test_a_wrong_engine_is_caught_and_left(sabotaged, caplog):
    texts = ["fine", "also fine", "some sabotage"]
    expected = [ids.tolist() for ids in sabotaged.encode_reference(texts)]
    assert [ids.tolist() for ids in sabotaged.encode(texts)] == expected
    (mismatch,) = sabotaged.mismatches
    assert mismatch.position == len(expected[2]) - 1
    assert mismatch.sha256 in caplog.text
    assert "from here on the slower library" in caplog.text
    assert sabotaged.engine == "reference"
    assert sabotaged.fast.documents == 0, "the same call is made again as a whole"
    sabotaged.encode(["later"])
    assert {reason: share.documents for reason, share in sabotaged.slow.items()} == {
        "mismatch found": 3,
        "mismatch found before": 1,
    }


def test_a_late_fault_is_caught_by_the_hash_of_the_text(sabotaged):
    """Beyond the first twenty, one document in so many: which, the text alone decides."""
    sabotaged.verify_sample_every = 10
    sabotaged.encode([f"document {number}" for number in range(20)])
    assert sabotaged.num_verified == 20
    calls = [[f"sabotage {number}"] for number in range(100)]
    for call in calls:
        sabotaged.encode(call)
        if sabotaged.mismatches:
            break
    assert 20 < sabotaged.num_verified <= 22
    assert 1 < sabotaged.fast.documents - 20 < 60, "some went by before the sample; the caller is told"


def test_one_in_so_many_is_verified(tiny_encoder):
    tiny_encoder.verify_sample_every = 10
    tiny_encoder.encode([f"document {number}" for number in range(1020)])
    assert 60 < tiny_encoder.num_verified - 20 < 140
    assert not tiny_encoder.mismatches
    with pytest.raises(FoundryError, match="verify_sample_every: expected at least 1"):
        DocumentEncoder.load("unused", verify_sample_every=0)


# ----------------------------------------------------------------------------------------- long texts

LONG = {
    "letters": "a" * 10**6,
    "blanks": " " * 10**6,
    "blanks before a word": "x" + " " * 10**6 + "x",
    "tabs": "\t" * 10**6 + "x",
    "digits": "1" * 10**6,
    "marks": "^" * 10**6,
    "newlines": "\n" * 10**6 + "x",
    "newlines and blanks": " \n" * 500_000,
    "combining": "e" + "\u0316\u0301" * 200_000,
    "CJK": "中文字" * 300_000,
    "no-break": "\xa0" * 10**6 + "x",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_a_long_piece_neither_crashes_nor_hangs_nor_differs(tiny_encoder, kind):
    started = time.process_time()
    assert_same(tiny_encoder, LONG[kind])
    assert time.process_time() - started < 60


def test_blanks_beyond_the_regex_stack_are_counted(tiny_encoder):
    tiny_encoder.encode([LONG["blanks"], "x"])
    assert tiny_encoder.slow["run of blanks too long"].documents == 1
    assert tiny_encoder.fast.documents == 1


def test_a_long_document_that_is_not_nfc_is_normalized_in_pieces(tiny_encoder):
    text = "e\u0301 = 1\nx = 'e\u0301'\n" * 8000
    assert not unicodedata.is_normalized("NFC", text)
    assert_same(tiny_encoder, text)
    assert tiny_encoder.fast.documents == 1


def test_text_without_ids_is_named(tiny_encoder):
    with pytest.raises(UnencodableText, match=r"document 1: lone surrogate U\+D800 at character 2") as caught:
        tiny_encoder.encode(["fine", "a \ud800"])
    assert caught.value.number == 1
    assert isinstance(caught.value, FoundryError)
    with pytest.raises(UnencodableText, match="document 0: 6000000 blanks in a row, more than 5000000"):
        tiny_encoder.encode(["x" + " " * 6_000_000 + "x"])
    with pytest.raises(UnencodableText, match="document 0"):
        tiny_encoder.encode_reference(["\udfff"])
    assert tiny_encoder.fast.documents == 0


# ------------------------------------------------------------------------------------------ refusals


def with_model(**changes):
    return lambda content: content["model"].update(changes)


def with_split(**changes):
    return lambda content: content["pre_tokenizer"]["pretokenizers"][0].update(changes)


def with_pattern(pattern):
    return with_split(pattern={"Regex": pattern})


def swap_merges(content):
    merges = content["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]


def without_a_byte(content):
    del content["model"]["vocab"]["ÿ"]


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
REFUSALS = {
    "merge order": (swap_merges, "ids are not in merge order"),
    "bytes": (without_a_byte, "1 of the 256 bytes"),
    "dropout": (with_model(dropout=0.1), "dropout: 0.1"),
    "ignore_merges": (with_model(ignore_merges=True), "ignore_merges"),
    "byte_fallback": (with_model(byte_fallback=True), "byte_fallback"),
    "suffix": (with_model(end_of_word_suffix="a"), "end_of_word_suffix"),
    "normalizer": (lambda c: c.update(normalizer={"type": "Lowercase"}), "Lowercase, not NFC"),
    "no pre-tokenizer": (lambda c: c.update(pre_tokenizer=None), "does not end with ByteLevel"),
    "Metaspace": (lambda c: c.update(pre_tokenizer=METASPACE), "does not end with ByteLevel"),
    "inverted": (with_split(invert=True), "not by an isolated"),
    "behavior": (with_split(behavior="Removed"), "not by an isolated"),
    "a string": (with_split(pattern={"String": " "}), "not by an isolated"),
    "possessive": (with_pattern(r"\p{L}++|\s+|[^\s\p{L}]"), r"its pattern has '\+\+"),
    "possessive count": (with_pattern(r"\p{N}{1,3}+|\s+"), "its pattern has"),
    "lazy": (with_pattern(r"\p{L}+?|\s+"), "its pattern has"),
    "anchor": (with_pattern(r"^\s+|\S+"), "its pattern has"),
    "dot": (with_pattern(r".+"), "its pattern has"),
    "look-behind": (with_pattern(r"(?<=a)b|\S+|\s+"), "its pattern has"),
    "intersection": (with_pattern(r"[\w&&[^a]]+"), "its pattern has"),
    "empty match": (with_pattern(r"\s*|\S+"), "can match the empty text"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_not_tiktokens_algorithm_is_left_to_the_reference(tiny, cache_dir, tmp_path, caplog, kind):
    change, reason = REFUSALS[kind]
    content = json.loads((tiny / "tokenizer.json").read_text())
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FoundryError, match=rf"(?s)engine: tiktoken cannot be used, .*{reason}"):
        DocumentEncoder.load(tmp_path, "tiktoken", cache_dir)
    encoder = DocumentEncoder.load(tmp_path, "auto", cache_dir)
    assert encoder.engine == "reference"
    assert caplog.text.count("slower tokenizers library") == 1
    encoder.encode(["a b"])
    assert encoder.slow["engine"].documents == 1


@pytest.mark.parametrize(
    "model",
    [
        models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0),
        models.WordLevel({"a": 0}, unk_token="a"),
    ],
)
def test_other_models_are_left_to_the_reference(model, tmp_path, caplog):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    save(tmp_path, backend)
    assert DocumentEncoder.load(tmp_path).engine == "reference"
    assert "not BPE" in caplog.text


def test_a_llama2_style_tokenizer_is_left_to_the_reference(tmp_path, caplog):
    backend = Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "a": 2}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    save(tmp_path, backend)
    encoder = DocumentEncoder.load(tmp_path)
    assert encoder.engine == "reference"
    assert encoder.encode(["a a"])[0].tolist() == [1, 2, 1, 2]
    assert "does not end with ByteLevel" in caplog.text


def test_truncation_in_the_file_does_not_shorten_documents(tiny, tmp_path):
    backend = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    backend.enable_truncation(2)
    save(tmp_path, backend)
    assert len(DocumentEncoder.load(tmp_path, "reference").encode(["1 2 3 4"])[0]) == 7


# --------------------------------------------------------------------------------------------- facts


def test_what_it_says_about_the_tokenizer(tiny, tiny_encoder):
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert tiny_encoder.vocab_size == tokenizer.get_vocab_size()
    assert tiny_encoder.eos_token_id == tokenizer.token_to_id("<|endoftext|>")
    assert tiny_encoder.sha256 == sha256_of_file(tiny / "tokenizer.json")
    assert DocumentEncoder.load(tiny / "tokenizer.json", "reference").sha256 == tiny_encoder.sha256


def test_no_end_of_sequence_is_an_error_where_it_is_asked_for(tiny, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((tiny / "tokenizer.json").read_bytes())
    encoder = DocumentEncoder.load(tmp_path, "reference")
    with pytest.raises(FoundryError, match=r"tokenizer_config.json: eos_token: missing"):
        _ = encoder.eos_token_id
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<none>"}')
    with pytest.raises(FoundryError, match="'<none>' is not in the vocabulary"):
        _ = encoder.eos_token_id
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert encoder.eos_token_id == 2


def test_a_file_that_makes_the_library_panic_is_one_line_too(tiny, tmp_path):
    content = json.loads((tiny / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "##"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FoundryError, match=r"tokenizer.json: not a tokenizer.json"):
        DocumentEncoder.load(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 1}', "\xff"])
def test_no_tokenizer_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(FoundryError, match=r"tokenizer.json: (cannot read|not a)") as caught:
        DocumentEncoder.load(tmp_path)
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------- proof


def test_a_pattern_is_taken_apart():
    parts = pattern_parts(QWEN_PATTERN)
    assert {r"\p{L}", r"\p{N}", r"\s", r"\S", r"[^\s\p{L}\p{N}]", "(?i:s)", " "} <= set(parts.sets)
    assert parts.caseless == ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
    assert pattern_parts(GPT2_PATTERN).caseless == ()
    assert pattern_parts(r"(?i:a(?:b|c))d{1,3}") == PatternParts(
        ("(?i:a)", "(?i:b)", "(?i:c)", "d"), ("a", "b", "c")
    )
    with pytest.raises(NotByteLevelBPE):
        read_byte_level_bpe({})


@pytest.mark.slow
def test_a_letter_that_folds_to_two_is_found():
    assert pattern_differences("(?i:ss)") >= {"ß", "ẞ"}


@pytest.mark.slow
def test_the_engines_sets_are_told_apart(monkeypatch):
    """The comparison itself: sets that do differ are reported, character by character."""
    real = tokenizer_proof._members_in_tiktoken
    monkeypatch.setattr(tokenizer_proof, "_members_in_tiktoken", lambda one, text: real("[a-fö]", text))
    assert pattern_differences("[b-gé]") == {"a", "g", "ö", "é"}
    assert real("[a-fö]", every_character()) == set("abcdefö")


MARKS = st.characters(categories=["Mn", "Mc", "Me"]) | st.sampled_from(
    ["a", "\u1100", "\u1161", "é", "\u0915"]
)


@settings(max_examples=500)
@given(st.lists(MARKS, max_size=8).map("".join))
def test_python_and_the_library_agree_on_nfc_but_for_risky_characters(tiny_encoder_once, text):
    if not tiny_encoder_once._fast._has_risky(text):
        assert normalizers.NFC().normalize_str(text) == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="session")
def tiny_encoder_once(tiny, cache_dir):
    return DocumentEncoder.load(tiny, "tiktoken", cache_dir)


@pytest.fixture
def counted_sweeps(monkeypatch):
    """Sweeps of no cost that find one character, and how often they ran."""
    calls = []
    monkeypatch.setattr(
        tokenizer_proof, "pattern_differences", lambda pattern: calls.append(pattern) or {"\u0378"}
    )
    monkeypatch.setattr(tokenizer_proof, "normalization_differences", set)
    return calls


def test_the_proof_is_made_once_and_again_where_its_file_is_not_right(tiny, tmp_path, counted_sweeps, caplog):
    def load():
        return DocumentEncoder.load(tiny, "tiktoken", tmp_path)

    load()
    assert np.flatnonzero(load()._fast._is_risky).tolist() == [0x378]
    assert len(counted_sweeps) == 1
    (path,) = [path for path in tmp_path.iterdir() if '"nfc"' in path.read_text()]
    content = json.loads(path.read_text())
    damaged = [
        "",
        "{",
        "[]",
        json.dumps(content | {"found": []}),
        json.dumps(content | {"key": content["key"] | {"tiktoken": "0"}}),
    ]
    for number, text in enumerate(damaged):
        path.write_text(text)
        load()
        assert len(counted_sweeps) == number + 2
        assert json.loads(path.read_text()) == content
    assert caplog.text.count("not used, made again") == len(damaged)


def test_another_version_makes_another_proof(tiny, tmp_path, counted_sweeps, monkeypatch):
    DocumentEncoder.load(tiny, "tiktoken", tmp_path)
    monkeypatch.setattr(tokenizer_proof, "version", lambda name: "99")
    DocumentEncoder.load(tiny, "tiktoken", tmp_path)
    assert len(counted_sweeps) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(tiny, tmp_path, counted_sweeps, caplog):
    (tmp_path / "file").write_text("")
    encoder = DocumentEncoder.load(tiny, "tiktoken", tmp_path / "file" / "cache")
    assert encoder.engine == "tiktoken"
    assert "the next process proves again" in caplog.text


def test_ascii_that_differs_is_refused(tiny, tmp_path, monkeypatch, counted_sweeps):
    monkeypatch.setattr(tokenizer_proof, "pattern_differences", lambda pattern: {"x"})
    with pytest.raises(FoundryError, match="splits ASCII text otherwise"):
        DocumentEncoder.load(tiny, "tiktoken", tmp_path)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "modeling_foundry"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "modeling_foundry"


def test_without_tiktoken_the_reference_encodes(tiny, tmp_path, monkeypatch, caplog):
    import sys

    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with caplog.at_level(logging.WARNING, logger=fast_tokenizer.__name__):
        assert DocumentEncoder.load(tiny, "auto", tmp_path).engine == "reference"
    assert "tiktoken is not installed" in caplog.text
