"""A corpus is encoded as tokenizer.json says; a class that AutoTokenizer makes another tokenizer of is refused."""

import json
import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from modeling_foundry.data.sources.scan import make_manifest
from modeling_foundry.data.sources.settings import ManifestSettings
from modeling_foundry.data.tokenization.pipeline import TOKENIZER_FILES, tokenize
from modeling_foundry.data.tokenization.settings import TokenizeSettings
from modeling_foundry.data.tokenizer.class_check import (
    refuse_another_class,
    refuse_another_tokenizer,
)
from modeling_foundry.data.tokenizer.training import QWEN_PATTERN, train_tokenizer
from modeling_foundry.settings import FoundryError
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT

END = "<|endoftext|>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(*before, added=(), normalizer=None, **changes):
    """A byte-level BPE of GPT-2's pattern, with other pre-tokenizers before that."""
    backend = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    if normalizer:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
    )
    backend.train_from_iterator([SOURCE_TEXT], trainer)
    backend.add_tokens(list(added))
    content = json.loads(backend.to_str())
    content["model"].update(changes)
    return Tokenizer.from_str(json.dumps(content))


def sentencepiece(pre_tokenizer=None, normalizer=None, added=()):
    """A BPE of Llama's kind: blanks are ▁, unknown characters their bytes."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer:
        backend.normalizer = normalizer
    if pre_tokenizer:
        backend.pre_tokenizer = pre_tokenizer
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SOURCE_TEXT.splitlines(), trainer)
    backend.add_tokens(list(added))
    return backend


def metaspace(scheme):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)


def words_without_unknown():
    backend = Tokenizer(models.WordLevel({"parse": 0, END: 1}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def save(folder, backend, eos=END, **values):
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, **values}))
    return folder


def refuse(folder):
    refuse_another_class(folder, TOKENIZER_FILES)


def smollm():
    return byte_level(pre_tokenizers.Digits(individual_digits=True))


def old_llama():
    return sentencepiece(
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )


REFUSED = {
    "digits": (smollm, {}, "GPT2Tokenizer", r"splits '12345' into \['12345'\], tokenizer.json into \['1', '2', "),
    "name ends in Fast": (smollm, {}, "GPT2TokenizerFast", "GPT2Tokenizer splits '12345' into"),
    "prefix": (byte_level, {"add_prefix_space": True}, "GPT2Tokenizer", r"into \['Ġ.*tokenizer.json into \['\d"),
    "normal form": (
        lambda: byte_level(normalizer=normalizers.NFKC()), {}, "GPT2Tokenizer", "splits .* tokenizer.json into",
    ),
    "another pattern": (byte_level, {}, "Qwen2Tokenizer", r"splits '12345' into \['1', "),
    "ignore_merges alone": (
        lambda: byte_level(ignore_merges=True), {}, "GPT2Tokenizer", "has ignore_merges None, tokenizer.json True",
    ),
    "leading blanks": (old_llama, {"eos": "</s>"}, "LlamaTokenizer", r"splits ' word' into \['▁word'\], .*'▁▁word'"),
    "after an added token": (
        lambda: sentencepiece(metaspace("always"), added=["<think>"]), {"eos": "</s>"}, "LlamaTokenizer",
        "makes .* of 'a<think>b <think> c'",
    ),
    "words": (byte_level, {}, "BertTokenizer", "tokenizer_class: BertTokenizer "),
    "no backend": (byte_level, {}, "ByT5Tokenizer", "tokenizer_class: ByT5Tokenizer "),
}  # fmt: skip
ACCEPTED = {
    "digits": (smollm, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "digits, prefix": (smollm, {"tokenizer_class": "TokenizersBackend", "add_prefix_space": True}),
    "digits, no class": (smollm, {}),
    "unknown class": (smollm, {"tokenizer_class": "OurTokenizer"}),
    "words without an unknown one": (words_without_unknown, {"tokenizer_class": "OurTokenizer"}),
    "ids drawn anew each time": (lambda: byte_level(dropout=0.5), {"tokenizer_class": "TokenizersBackend"}),
    "GPT-2": (byte_level, {"tokenizer_class": "GPT2Tokenizer"}),
    "GPT-2 with more": (
        lambda: byte_level(added=["<think>", AddedToken("def", single_word=True)]),
        {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|pad|>"},
    ),
    "Llama": (
        lambda: sentencepiece(metaspace("first"), added=["<think>"]),
        {"tokenizer_class": "LlamaTokenizer", "eos": "</s>"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_class_that_makes_another_tokenizer_is_refused(case, tmp_path):
    make, values, name, words = REFUSED[case]
    folder = save(tmp_path / "tokenizer", make(), **values, tokenizer_class=name)
    with pytest.raises(FoundryError, match=words) as raised:
        refuse(folder)
    said = str(raised.value)
    assert said.startswith(f"{folder / 'tokenizer_config.json'}: tokenizer_class: ")
    assert said.endswith("write PreTrainedTokenizerFast there, which keeps tokenizer.json as it is")
    assert "\n" not in said
    assert len(said) < 500 + len(str(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    _compare(folder)  # what the line says is right is right


def _compare(folder):
    from transformers import AutoTokenizer

    refuse_another_tokenizer(folder, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_class_that_keeps_the_tokenizer_is_accepted(case, tmp_path):
    make, values = ACCEPTED[case]
    folder = save(tmp_path / "tokenizer", make(), **values)
    refuse(folder)
    _compare(folder)  # also those that are not loaded, for their class is known


def test_qwens_class_and_ours_are_one_pipeline(tmp_path):
    """Qwen3's own folder names Qwen2Tokenizer."""
    train_tokenizer([SOURCE_TEXT], 320).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    assert QWEN_PATTERN in json.dumps(json.loads((tmp_path / "tokenizer.json").read_text())).replace(
        "\\\\", "\\"
    )
    refuse(tmp_path)


def test_the_models_config_beside_it_is_not_what_training_will_find(tmp_path):
    save(tmp_path, smollm(), tokenizer_class="GPT2Tokenizer", model_type="gpt2")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    refuse(tmp_path)


def test_a_folder_without_a_configuration_or_with_a_broken_one(tmp_path):
    save(tmp_path, smollm())
    (tmp_path / "tokenizer_config.json").unlink()
    refuse(tmp_path)
    _compare(tmp_path)
    for content in ("{", "[]", "\xff"):
        (tmp_path / "tokenizer_config.json").write_text(content, encoding="latin-1")
        with pytest.raises(
            FoundryError, match="tokenizer_config.json: not readable as JSON; expected an object"
        ):
            refuse(tmp_path)


# ------------------------------------------------------------------------------------ in the tokenize command


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "part.jsonl").write_text(json.dumps({"text": "parse(2024)"}) + "\n")
    make_manifest(ManifestSettings(source=str(tmp_path / "source"), output=str(tmp_path / "m.jsonl")))
    return tmp_path


def wanted(source, tokenizer, **changes):
    return TokenizeSettings(
        manifest=str(source / "m.jsonl"), tokenizer=str(tokenizer), output_dir=str(source / "data"), workers=1,
        **{"engine": "reference", **changes},
    )  # fmt: skip


def test_nothing_is_written_or_cleared_before_the_refusal(source):
    bad = save(source / "bad", smollm(), tokenizer_class="GPT2Tokenizer")
    good = save(source / "good", smollm(), tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(FoundryError, match="tokenizer_class: GPT2Tokenizer splits"):
        tokenize(wanted(source, bad))
    assert not (source / "data").exists()
    tokenize(wanted(source, good))
    with pytest.raises(FoundryError, match="tokenizer_class: GPT2Tokenizer splits"):
        tokenize(wanted(source, bad, overwrite=True))
    assert (source / "data" / "corpus.json").is_file()


@pytest.mark.slow
def test_the_command_says_one_line_and_ends_with_2(source):
    bad = save(source / "bad", smollm(), tokenizer_class="GPT2Tokenizer")
    given = wanted(source, bad)
    command = [sys.executable, "recipes/prepare_data.py", "tokenize"]
    for key in ("manifest", "tokenizer", "output_dir"):
        command += [f"--{key}", getattr(given, key)]
    ended = warm_start.run(command, cwd=REPOSITORY)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        f"error: {bad / 'tokenizer_config.json'}: tokenizer_class:"
    )


@pytest.mark.parametrize("values", [{}, {"tokenizer_class": "TokenizersBackend"}], ids=["no class", "keeper"])
def test_a_class_that_keeps_it_costs_no_import_of_transformers(source, values):
    folder = save(source / "tokenizer", smollm(), **values)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from modeling_foundry.data.tokenization.pipeline import TOKENIZER_FILES\n"
        "from modeling_foundry.data.tokenizer.class_check import refuse_another_class\n"
        f"refuse_another_class(Path({str(folder)!r}), TOKENIZER_FILES)\n"
        "print({'transformers', 'torch'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
