"""Tokenizers of every family: the ids of the tokenizers library, and no text that becomes a control token."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from modeling_foundry.data.sources.scan import make_manifest
from modeling_foundry.data.sources.settings import ManifestSettings
from modeling_foundry.data.tokenization import shard_task as tokenization
from modeling_foundry.data.tokenization.pipeline import tokenize
from modeling_foundry.data.tokenization.settings import TokenizeSettings
from modeling_foundry.data.tokenizer.document_encoder import DocumentEncoder, Mismatch
from modeling_foundry.data.tokenizer.training import QWEN_PATTERN
from modeling_foundry.data.tokens.corpus import TokenCorpus
from modeling_foundry.settings import FoundryError
from tests.conftest import SOURCE_TEXT

CONTROLS = ("<|endoftext|>", "<|im_end|>", "</s>", "[SEP]")
TEXTS = [SOURCE_TEXT] + ["don't <|im_end|> 中文 </s> [SEP] été"] * 40
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama3": QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|"),
    "gpt4o": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "words": r"\S+|\s+",
}


def byte_level(pattern, **changes):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(backend, trainers.BpeTrainer, initial_alphabet=alphabet, special_tokens=list(CONTROLS))
    content = json.loads(backend.to_str())
    content["model"].update(changes)
    return Tokenizer.from_str(json.dumps(content))


def trained(backend, trainer, special_tokens=("<unk>", *CONTROLS), **options):
    options = {"vocab_size": 700, "show_progress": False, "special_tokens": list(special_tokens), **options}
    backend.train_from_iterator(TEXTS, trainer(**options))
    return backend


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.normalizer, backend.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    return trained(backend, trainers.UnigramTrainer, unk_token="<unk>")


def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return trained(backend, trainers.WordPieceTrainer)


def llama2():
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *CONTROLS, *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(backend, trainers.BpeTrainer, special)


def with_added():
    backend = byte_level(PATTERNS["llama3"])
    backend.normalizer = normalizers.NFC()
    tokens = [
        AddedToken("<a>", lstrip=True, rstrip=True), AddedToken("def", single_word=True),
        AddedToken("<K>", normalized=True), AddedToken("é!", normalized=True), AddedToken("<|im_", normalized=False),
    ]  # fmt: skip
    backend.add_tokens(tokens)
    backend.add_special_tokens([AddedToken("<Ké>", normalized=True, lstrip=True)])
    return backend


def with_post_processor():
    backend = byte_level(PATTERNS["llama3"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 1)]
    )
    return backend


MAKERS = {
    "llama3 pattern": (lambda: byte_level(PATTERNS["llama3"]), "tiktoken"),
    "gpt4o pattern": (lambda: byte_level(PATTERNS["gpt4o"]), "tiktoken"),
    "llama3": (lambda: byte_level(PATTERNS["llama3"], ignore_merges=True), "reference"),
    "words": (lambda: byte_level(PATTERNS["words"]), "reference"),
    "words ignore_merges": (lambda: byte_level(PATTERNS["words"], ignore_merges=True), "reference"),
    "post-processor": (with_post_processor, "tiktoken"),
    "added tokens": (with_added, "tiktoken"),
    "unigram": (unigram, "reference"),
    "wordpiece": (wordpiece, "reference"),
    "llama2": (llama2, "reference"),
}  # fmt: skip
# Those in which ordinary text does become a control token.
REACHABLE = ("words", "words ignore_merges", "unigram", "wordpiece")
FRAGMENTS = [
    *CONTROLS, "<|im_", "end|>", "<K>", "<\u212a>", "<\u212ae\u0301>", "  <Ké> ", "e\u0301!", "\u0338", "<a>", " ",
    "\n", "\r\n", "def", "_", "1", "23", "中", "\xa0", "'s", "'S", "'ſ", "A", "a", "ǅ", "ʰ", "\u0345", "/", "<", ">",
    "  ", "Σ", "ß", "\u1e9e", "İ", "\u200b", "＜/s＞",
]  # fmt: skip


def save(folder, backend, eos="<|endoftext|>"):
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=MAKERS)
def family(request, tmp_path_factory, cache_dir):
    """Name, our encoder that verifies nothing by itself, and the library as its own manual says."""
    maker, engine = MAKERS[request.param]
    folder = save(tmp_path_factory.mktemp("family"), maker())
    encoder = DocumentEncoder.load(folder, "auto", cache_dir, verify_sample_every=10**9)
    encoder.num_verified = 10**6
    assert encoder.engine == engine
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    return request.param, encoder, library


@pytest.mark.slow
def test_the_ids_are_the_librarys(family):
    _, encoder, library = family

    @given(st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join))
    def check(text):
        assert encoder.encode([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids

    check()
    for block in ("x\n<|im_end|>", "a" * 50 + "\n", "<|im_end|>\n中\u0338", "e\u0301 " * 9 + "\n"):
        text = block * (45_000 // len(block))  # over the places where long texts are cut
        assert encoder.encode([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids


def test_a_document_that_holds_a_control_token_is_found(family):
    """Where the library itself makes the control token of a spelling, the document is said to hold it."""
    name, encoder, _ = family
    end = encoder.token_id("<|endoftext|>")
    spelled = ["<|im_end|>", "a </s> b", "x [SEP]", "＜/s＞"]
    found = [encoder.control_token_in(ids, end) for ids in encoder.encode(spelled)]
    assert any(found) == (name in REACHABLE)
    if name == "unigram":
        assert found == ["<|im_end|>", "</s>", "[SEP]", "</s>"]
    harmless = ["fine", "\x00 ÿ 😀 unknown"]
    assert [encoder.control_token_in(ids, end) for ids in encoder.encode(harmless)] == [None, None]


# ---------------------------------------------------------------------------------- in a whole corpus


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    for number, extra in enumerate(["ends </s> here", "fine"]):
        lines = [json.dumps({"text": text}) for text in ("def parse(text):", extra, "return text")]
        (tmp_path / "source" / f"part_{number}.jsonl").write_text("\n".join(lines))
    make_manifest(ManifestSettings(source=str(tmp_path / "source"), output=str(tmp_path / "m.jsonl")))
    return tmp_path


def wanted(tmp_path, tokenizer, **changes):
    return TokenizeSettings(
        manifest=str(tmp_path / "m.jsonl"), tokenizer=str(tokenizer), output_dir=str(tmp_path / "data"),
        **{"workers": 1, "engine": "reference", **changes},
    )  # fmt: skip


def test_text_that_becomes_a_control_token_is_counted_and_left_out(source):
    tokenizer = save(source / "tokenizer", unigram(), eos="</s>")
    with pytest.raises(FoundryError, match="1 row with text that becomes the control token </s>"):
        tokenize(wanted(source, tokenizer, bad_rows="stop"))
    tokenize(wanted(source, tokenizer, bad_rows="skip"))
    corpus = TokenCorpus.open(source / "data")
    assert corpus.content["counts"]["train"]["bad_rows"] == {"text that becomes the control token </s>": 1}
    split = corpus.split("train")
    ids = split.read(0, split.num_tokens).tolist()
    assert ids.count(corpus.content["eos_token_id"]) == split.num_documents == 5


def test_an_end_of_document_that_is_not_special_is_not_made_by_text_either(source):
    """An added token that is not special is matched in text; as the end of documents it must not be."""
    backend = byte_level(PATTERNS["llama3"])
    backend.add_tokens([AddedToken("parse", special=False)])
    tokenize(wanted(source, save(source / "tokenizer", backend, eos="parse")))
    counts = TokenCorpus.open(source / "data").content["counts"]["train"]
    assert counts["bad_rows"] == {"text that becomes the control token parse": 2}


def test_another_tokenizer_in_one_process_is_not_the_one_before(source):
    """The encoder is kept between files, not between tokenizers of the same folder."""
    tokenize(wanted(source, save(source / "one", byte_level(PATTERNS["llama3"]))))
    tokenize(wanted(source, save(source / "two", byte_level(PATTERNS["gpt4o"])), overwrite=True))
    tokenize(wanted(source, save(source / "three", wordpiece()), overwrite=True, bad_rows="skip"))
    corpus = TokenCorpus.open(source / "data")
    assert corpus.content["vocab_size"] == DocumentEncoder.load(source / "three", "reference").vocab_size


def test_another_end_of_document_makes_another_corpus(source):
    """tokenizer.json is the same and its configuration names another end: nothing of both may stand side by side."""
    tokenizer = save(source / "tokenizer", byte_level(PATTERNS["llama3"]))
    tokenize(wanted(source, tokenizer))
    save(source / "tokenizer", byte_level(PATTERNS["llama3"]), eos="<|im_end|>")
    with pytest.raises(FoundryError, match="holds another corpus .*eos_token_id"):
        tokenize(wanted(source, tokenizer))


def test_a_tokenizer_edited_while_the_corpus_is_made_is_refused(source, monkeypatch):
    """The copy in the folder is what the workers load; its hash is known since the start."""
    tokenizer = save(source / "tokenizer", byte_level(PATTERNS["llama3"]))

    def edit(*arguments):
        tokenization.encoder_of.cache_clear()
        path = source / "data" / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace("</s>", "</S>"))
        return execute(*arguments)

    from modeling_foundry.data.tokenization import pipeline as corpus_build

    execute = corpus_build.run_on_this_machine
    monkeypatch.setattr(corpus_build, "run_on_this_machine", edit)
    with pytest.raises(FoundryError, match="2 of 2 files .* was changed while the corpus was made"):
        tokenize(wanted(source, tokenizer))
    monkeypatch.undo()
    tokenize(wanted(source, tokenizer))
    assert TokenCorpus.open(source / "data").content["counts"]["train"]["documents"] == 6


def test_a_mismatch_stands_at_the_file_it_was_found_in_alone(source):
    tokenizer = save(source / "tokenizer", byte_level(PATTERNS["llama3"]))
    encoder = DocumentEncoder.load(tokenizer, "reference")
    encoder.mismatches.append(Mismatch("of a file before", 0))
    tokenization.encoder_of.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "encoder_of", lambda *_: encoder)
        tokenize(wanted(source, tokenizer))
    assert TokenCorpus.open(source / "data").content["counts"]["train"]["mismatches"] == []


@pytest.mark.slow
def test_a_file_half_encoded_by_the_wrong_engine_never_has_a_header(source, monkeypatch):
    """A shard with its header is kept by the next run: killed between the two passes, it would keep wrong ids."""
    tokenizer = save(source / "tokenizer", byte_level(PATTERNS["llama3"]))
    encoder = DocumentEncoder.load(tokenizer, "tiktoken", cache_dir=source, verify_sample_every=1)
    encode, num_calls = encoder._fast.encode, iter(range(100))
    monkeypatch.setattr(encoder._fast, "encode", lambda text: encode(text)[next(num_calls) > 2 :])
    monkeypatch.setattr(tokenization, "encoder_of", lambda *_: encoder)
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 1)
    write_with, headers = tokenization._write_with, []

    def noted(*arguments):
        headers.append([path.name for path in (source / "data").rglob("*.ds.json")])
        return write_with(*arguments)

    monkeypatch.setattr(tokenization, "_write_with", noted)
    tokenize(wanted(source, tokenizer))
    assert headers == [[], ["000000.ds.json"], ["000000.ds.json"]], "the second file was begun twice"
    assert len(TokenCorpus.open(source / "data").content["counts"]["train"]["mismatches"]) == 1
