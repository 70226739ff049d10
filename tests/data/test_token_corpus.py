"""Many shards as one row of tokens, verified once and then looked at, opened without being read."""

import errno
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.data.inspection.settings import InspectSettings, VerifySettings
from modeling_foundry.data.inspection.verify import check_tokenizer, verify
from modeling_foundry.data.sequences.training_data import open_mixture, open_training_data
from modeling_foundry.data.tokens import mapped_files
from modeling_foundry.data.tokens import shards as shards_module
from modeling_foundry.data.tokens.corpus import TokenCorpus, write_corpus
from modeling_foundry.data.tokens.shards import TokenShard, write_shard
from modeling_foundry.data.tokens.verification import verify_corpus
from modeling_foundry.files import sha256_of_file
from modeling_foundry.settings import FoundryError


def make_corpus(folder, shards, tokenizer="{}", vocab_size=300, held_out=True):
    """A corpus whose documents are given; the end of text is id 0."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer)
    digest = sha256_of_file(folder / "tokenizer" / "tokenizer.json")
    splits = {"train": [], "validation": []}
    for number, documents in enumerate(shards):
        name = f"train/{number:06d}.ds"
        splits["train"].append((name, write_shard(folder / name, documents, vocab_size, 0, digest)))
    if held_out:
        name = "validation/000000.ds"
        splits["validation"].append((name, write_shard(folder / name, [[1] * 50], vocab_size, 0, digest)))
    else:
        del splits["validation"]
    write_corpus(folder, splits, {})
    return TokenCorpus.open(folder)


DOCUMENTS = st.lists(st.lists(st.integers(1, 299), max_size=9), max_size=4)


@settings(max_examples=40)
@given(st.lists(DOCUMENTS, min_size=1, max_size=5), st.data())
def test_shards_read_as_one(tmp_path_factory, shards, data):
    train = make_corpus(tmp_path_factory.mktemp("corpus") / "c", shards).split("train")
    documents = [document for shard in shards for document in shard]
    tokens = [id for document in documents for id in [*document, 0]]
    assert train.num_tokens == len(tokens)
    if not tokens:
        return
    start = data.draw(st.integers(0, len(tokens) - 1))
    stop = data.draw(st.integers(start + 1, len(tokens)))
    assert train.read(start, stop).tolist() == tokens[start:stop]
    ends = np.cumsum([len(document) + 1 for document in documents])
    assert train.document_ends_in(start, stop).tolist() == [end for end in ends if start < end < stop]


def test_a_block_inside_one_shard_is_not_copied(tmp_path):
    train = make_corpus(tmp_path / "c", [[[1] * 20], [[2] * 20]]).split("train")
    assert np.shares_memory(train.read(3, 9), train.shard(0).read(0, 21))
    assert train.read(18, 24).tolist() == [1, 1, 0, 2, 2, 2]


def num_open_files():
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


@pytest.fixture
def few_maps(monkeypatch):
    """A process that keeps four files mapped, and none yet."""
    few = lru_cache(maxsize=4)(mapped_files.kept_map.__wrapped__)
    monkeypatch.setattr(shards_module, "kept_map", few)
    return few


def test_few_files_are_open_at_a_time_over_all_corpora(tmp_path, few_maps):
    """Each split of each corpus had a limit of its own: three corpora of 210 shards died of 1,200 open files."""
    names = [str(tmp_path / name) for name in "abc"]
    for place, name in enumerate(names):
        make_corpus(Path(name), [[[20 * place + number + 1] * 7] for number in range(20)])
    data = open_mixture(dict.fromkeys(names, 1.0), 4.0)
    train, before = data.train_dataset(8, 60, 1, True), num_open_files()
    found = {int(train[index]["input_ids"][0]) for index in range(60)}
    assert len(found) > 30
    assert {(first - 1) // 20 for first in found} == {0, 1, 2}
    assert num_open_files() - before <= 4


def test_a_block_over_many_shards_opens_few_of_them_at_a_time(tmp_path, few_maps):
    """As many were open as the block had shards: ten thousand tiny files make shards of some tokens."""
    train = make_corpus(tmp_path / "c", [[[number % 250 + 1]] for number in range(90)]).split("train")
    before, most = num_open_files(), 0
    read = TokenShard.read

    def counted(shard, start, stop):
        nonlocal most
        most = max(most, num_open_files() - before)
        return read(shard, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenShard, "read", counted)
        ids = train.read(0, 180)
    assert ids.tolist() == [id for number in range(90) for id in (number % 250 + 1, 0)]
    assert most <= 5


@pytest.mark.parametrize(("limit", "maps"), [(10_000, 400), (1024, 400), (256, 128), (100, 50)])
def test_maps_take_no_more_than_half_of_what_a_process_may_open(monkeypatch, limit, maps):
    monkeypatch.setattr(mapped_files.resource, "getrlimit", lambda _: (limit, limit))
    assert mapped_files.num_mapped_files() == maps
    mapped_files.check_open_files()


def test_too_few_open_files_is_one_line_at_the_start(corpus, monkeypatch):
    monkeypatch.setattr(mapped_files.resource, "getrlimit", lambda _: (40, 1024))
    with pytest.raises(FoundryError, match=r"may open 40, expected at least 100; .*ulimit -n 1024"):
        open_training_data(corpus.folder)


def test_a_shard_that_was_replaced_is_mapped_anew(tmp_path):
    for number in (5, 6):
        write_shard(tmp_path / "a.ds", [[number] * 3], 300, 0, "")
        assert TokenShard.open(tmp_path / "a.ds").read(0, 4).tolist() == [number] * 3 + [0]


@pytest.fixture
def corpus(tmp_path):
    return make_corpus(tmp_path / "c", [[[1, 2, 3]] * 20, [[4, 5]] * 30])


@pytest.fixture
def read_only(monkeypatch):
    """A folder in which nothing can be made or removed: root may write whatever a file's mode says."""
    folders, make, remove = [], tempfile.mkstemp, Path.unlink

    def refuse(path):
        if any(Path(path).is_relative_to(folder) for folder in folders):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def unlink(path, missing_ok=False):
        if path.exists():
            refuse(path)
        remove(path, missing_ok)

    def mkstemp(*arguments, dir=None, **more):
        refuse(dir or tempfile.gettempdir())
        return make(*arguments, dir=dir, **more)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    monkeypatch.setattr(Path, "unlink", unlink)
    return folders.append


@pytest.mark.parametrize("was_verified", [False, True])
def test_a_corpus_where_nobody_may_write_is_verified_and_read(
    corpus, read_only, monkeypatch, caplog, capsys, was_verified
):
    """It was a traceback at verified.json, before the first step."""
    monkeypatch.setattr(
        "modeling_foundry.data.inspection.pictures.coloured_sample", lambda *_, **__: "sample"
    )
    if was_verified:
        verify_corpus(corpus)
    read_only(corpus.folder)
    data = open_training_data(corpus.folder)
    said = [record.getMessage() for record in caplog.records]
    line = f"{corpus.folder}/verified.json: cannot be written (Read-only file system); the next check reads every"
    assert [line in words for words in said] == ([] if was_verified else [True])
    assert len(data.train_dataset(8, 30, 0, True)) == 30
    verify(VerifySettings(data_dir=str(corpus.folder)))
    assert "221 tokens in 3 shards are as they were written" in capsys.readouterr().out
    (corpus.folder / "train/000000.ds").write_bytes(b"x" * 160)
    os.utime(corpus.folder / "train/000000.ds", ns=(1, 1))
    with pytest.raises(FoundryError, match="does not match the SHA-256"):
        verify(VerifySettings(data_dir=str(corpus.folder)))


def test_verify_reads_again_what_was_verified(corpus, monkeypatch):
    """Sizes and times may be kept while bytes rot."""
    monkeypatch.setattr(
        "modeling_foundry.data.inspection.pictures.coloured_sample", lambda *_, **__: "sample"
    )
    verify_corpus(corpus)
    path = corpus.folder / "train/000000.ds"
    times = path.stat().st_mtime_ns
    path.write_bytes(b"\x09" + path.read_bytes()[1:])
    os.utime(path, ns=(times, times))
    with pytest.raises(FoundryError, match="does not match the SHA-256"):
        verify(VerifySettings(data_dir=str(corpus.folder)))
    with pytest.raises(FoundryError, match="does not match the SHA-256"):  # and is not trusted afterwards
        open_training_data(corpus.folder)


def test_verified_once_then_looked_at(corpus):
    first = verify_corpus(corpus)
    assert (first.num_tokens, first.num_shards_read, first.num_shards_known) == (221, 3, 0)
    assert verify_corpus(corpus).num_shards_read == 0
    path = corpus.folder / "train" / "000001.ds"
    os.utime(path, ns=(1, 1))
    assert verify_corpus(corpus).num_shards_read == 3 - 2
    (corpus.folder / "verified.json").write_text("not JSON")
    assert verify_corpus(corpus).num_shards_read == 3


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("train/000000.ds", lambda data: data[:-2], "expected 160 bytes, found 158"),
        ("train/000000.ds", lambda data: b"\x09" + data[1:], "does not match the SHA-256"),
        ("train/000001.ds.index", lambda data: b"\x09" + data[1:], "does not match the SHA-256"),
        (
            "train/000001.ds.json",
            lambda data: data.replace(b'"eos_token_id": 0', b'"eos_token_id": 1'),
            "eos_token_id",
        ),
        ("train/000001.ds.json", lambda data: b"{", "not a shard header"),
        ("tokenizer/tokenizer.json", lambda data: data + b" ", "not the tokenizer that corpus.json lists"),
        ("corpus.json", lambda data: data.replace(b"80", b"81"), "it was changed since it was written"),
        ("corpus.json", lambda data: data[:40], "not a corpus index"),
        ("train/000000.ds", None, "missing, though corpus.json lists it"),
    ],
)
def test_any_fault_is_found_before_training(corpus, name, damage, message):
    verify_corpus(corpus)
    path = corpus.folder / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FoundryError, match=message) as error:
        open_training_data(corpus.folder)
    assert str(corpus.folder) in str(error.value)


def test_shards_of_two_corpora_do_not_mix(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", [[[7, 8, 9]] * 20])
    for suffix in ("", ".index", ".json"):
        source = other.folder / f"train/000000.ds{suffix}"
        (corpus.folder / f"train/000000.ds{suffix}").write_bytes(source.read_bytes())
    with pytest.raises(FoundryError, match="not the shard that corpus.json lists"):
        corpus.split("train").read(0, 4)
    with pytest.raises(FoundryError, match="tokens_sha256"):
        verify_corpus(corpus)


def test_the_command_compares_with_the_model(corpus, tmp_path, capsys, monkeypatch):
    """These shards have no real tokenizer; tests/data/test_tokenization.py decodes the sample."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 384}))
    monkeypatch.setattr(
        "modeling_foundry.data.inspection.pictures.coloured_sample", lambda *_, **__: "sample"
    )
    verify(VerifySettings(data_dir=str(corpus.folder), model=str(tmp_path)))
    assert "221 tokens in 3 shards are as they were written" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 256}))
    with pytest.raises(FoundryError, match="300 ids, the embedding only 256 rows"):
        verify(VerifySettings(data_dir=str(corpus.folder), model=str(tmp_path)))
    with pytest.raises(FoundryError, match=r"no tokenized corpus here|no prepared data here"):
        verify(VerifySettings(data_dir=str(tmp_path)))


def test_a_mixture_of_two_tokenizers_is_refused(corpus, tmp_path):
    make_corpus(tmp_path / "same", [[[1, 2]] * 40])
    make_corpus(tmp_path / "other", [[[1, 2]] * 40], tokenizer="[]")
    weights = {str(corpus.folder): 1.0, str(tmp_path / "same"): 2.0}
    data = open_mixture(weights, 4.0)
    assert len(data.train_dataset(8, 30, 0, True)) == 30
    assert data.fingerprint != open_mixture({**weights, str(corpus.folder): 2.0}, 4.0).fingerprint
    with pytest.raises(FoundryError, match="were made with different tokenizers"):
        open_mixture({**weights, str(tmp_path / "other"): 1.0}, 4.0)


def test_the_held_out_side_of_a_mixture_is_that_of_every_corpus(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", [[[9, 8]] * 40])
    data = open_mixture({str(corpus.folder): 2.0, str(other.folder): 1.0}, 4.0)
    held_out = data.held_out_dataset(8, 6, document_mask=True)
    assert [len(part) for part in held_out.datasets] == [4, 2]
    assert held_out.accounting() == (
        f"held out: {corpus.folder} 4 sequences (66.67%); {other.folder} 2 sequences (33.33%)"
    )
    assert held_out[5].keys() == {"input_ids", "labels", "position_ids"}


def test_a_mixture_with_a_corpus_that_holds_nothing_out_says_which(corpus, tmp_path):
    other = make_corpus(tmp_path / "other", [[[9, 8]] * 40], held_out=False)
    data = open_mixture({str(corpus.folder): 2.0, str(other.folder): 1.0}, 4.0)
    with pytest.raises(FoundryError, match=r"other: no validation or test split; give --eval_strategy=no"):
        data.held_out_dataset(8, 6, document_mask=False)


def test_one_corpus_under_two_names_is_refused(corpus, tmp_path):
    (tmp_path / "link").symlink_to(corpus.folder)
    shutil.copytree(corpus.folder, tmp_path / "copy")
    for other in ("link", "copy", "c/../c"):
        with pytest.raises(FoundryError, match=f"mixture: .*{other} and .*/c hold the same tokens"):
            open_mixture({str(corpus.folder): 1.0, str(tmp_path / other): 1.0}, 4.0)


def test_weights_are_checked_before_any_shard_is_read(corpus, monkeypatch):
    monkeypatch.setattr("modeling_foundry.data.sequences.training_data.verify_corpus", None)
    with pytest.raises(FoundryError, match="expected a positive weight, found 0"):
        open_mixture({str(corpus.folder): 0}, 4.0)


def test_a_folder_may_be_spelled_in_any_way(corpus, tmp_path, monkeypatch):
    other = make_corpus(tmp_path / "other", [[[9, 8]] * 40])
    monkeypatch.chdir(tmp_path)
    data = open_mixture({"c/": 2.0, f"./{other.folder.name}/": 1.0}, 4.0)
    assert data.train_dataset(8, 30, 0, False).accounting().startswith("mixture: c/ 176 tokens (73.33%")
    assert data.held_out_dataset(8, 6, False).accounting().startswith("held out: c/ 4 sequences")


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_model_whose_tokenizer_cannot_be_read_is_named(tmp_path, content):
    """It was a traceback."""
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}" if name == "ours" else content)
    with pytest.raises(FoundryError, match=r"theirs/tokenizer\.json: not a tokenizer\.json"):
        check_tokenizer(tmp_path / "ours", str(tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (InspectSettings, "sequence_length", 0), (InspectSettings, "sequence_length", -1),
        (InspectSettings, "sample_shards", 0), (VerifySettings, "workers", 0), (VerifySettings, "workers", -5),
    ],
)  # fmt: skip
def test_numbers_without_sense_are_refused(kind, name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*at least 1, found {value}"):
        kind(**{name: value})
