"""Tokenizing a corpus of many files: whole, killed at random moments, on SLURM, with files that are broken."""

import contextlib
import errno
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from modeling_foundry.data.inspection.pictures import inspect
from modeling_foundry.data.inspection.settings import InspectSettings, VerifySettings
from modeling_foundry.data.inspection.verify import verify
from modeling_foundry.data.sources import documents
from modeling_foundry.data.sources.scan import make_manifest
from modeling_foundry.data.sources.settings import ManifestSettings
from modeling_foundry.data.tokenization import shard_task as tokenization
from modeling_foundry.data.tokenization.document_marks import say_what_is_not_added
from modeling_foundry.data.tokenization.pipeline import console, tokenize
from modeling_foundry.data.tokenization.report import print_report
from modeling_foundry.data.tokenization.settings import TokenizeSettings
from modeling_foundry.data.tokenizer.training import batches_of, load_tokenizer, train_tokenizer
from modeling_foundry.data.tokens.corpus import TokenCorpus
from modeling_foundry.data.tokens.shards import TokenShard
from modeling_foundry.data.workers.executors import number_of_local_tasks
from modeling_foundry.files import sha256_of_file
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.waits import wait_for

NUM_FILES, NUM_DOCUMENTS = 9, 12


def document(file, number):
    start = (file * 977 + number * 131) % 12_000
    return f"file {file} document {number} spells <|im_end|>\n{SOURCE_TEXT[start : start + 900]}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([SOURCE_TEXT], 400).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for file in range(NUM_FILES):
        split = "validation" if file == NUM_FILES - 1 else "train"
        (root / split).mkdir(exist_ok=True)
        lines = [json.dumps({"text": document(file, number)}) + "\n" for number in range(NUM_DOCUMENTS)]
        (root / split / f"part_{file}.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return root


@pytest.fixture(scope="module")
def manifest(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    make_manifest(ManifestSettings(source=str(source), output=str(path)))
    return path


def wanted(manifest, tokenizer, folder, **changes):
    return TokenizeSettings(
        **{
            "manifest": str(manifest), "tokenizer": str(tokenizer), "output_dir": str(folder), "workers": 1,
            "engine": "reference", **changes,
        }
    )  # fmt: skip


def content(folder):
    """Every file of a corpus that its tokens are made of, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.ds*"))
        if not path.name.endswith(".tmp")
    }


@pytest.fixture(scope="module")
def corpus(manifest, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "data"
    tokenize(wanted(manifest, tokenizer, folder))
    return folder


def test_ids_are_those_of_the_tokenizers_library(corpus, tokenizer):
    """One document is its ids and the end of text; spelling a control token does not make one."""
    backend = load_tokenizer(tokenizer).backend_tokenizer
    backend.encode_special_tokens = True
    train = TokenCorpus.open(corpus).split("train")
    expected = [
        [*backend.encode(document(file, number), add_special_tokens=False).ids, 0]
        for file in range(NUM_FILES - 1)
        for number in range(NUM_DOCUMENTS)
    ]
    assert train.num_documents == len(expected)
    assert train.read(0, train.num_tokens).tolist() == [id for ids in expected for id in ids]
    control = {id for token, id in load_tokenizer(tokenizer).get_vocab().items() if token.startswith("<|im_")}
    assert not control & set(train.read(0, train.num_tokens).tolist())
    assert TokenCorpus.open(corpus).splits == ["train", "validation"]


@pytest.mark.parametrize("changes", [{"workers": 3}, {"workers": 64, "num_tasks": 4}, {"num_tasks": 2}])
def test_workers_and_tasks_change_nothing(corpus, manifest, tokenizer, tmp_path, changes):
    """More workers than shards too."""
    tokenize(wanted(manifest, tokenizer, tmp_path / "data", **changes))
    assert content(tmp_path / "data") == content(corpus)
    assert (tmp_path / "data" / "corpus.json").read_bytes() == (corpus / "corpus.json").read_bytes()


@pytest.mark.slow
def test_both_engines_give_the_same_corpus(corpus, manifest, tokenizer, tmp_path):
    tokenize(wanted(manifest, tokenizer, tmp_path / "data", engine="auto"))
    for name, data in content(corpus).items():
        if not name.endswith(".json"):
            assert content(tmp_path / "data")[name] == data
    shard = TokenShard.open(tmp_path / "data" / "train" / "000000.ds")
    assert shard.header.source["engine"] == "tiktoken"


def test_complete_means_nothing_is_done(corpus, manifest, tokenizer, capsys):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()}
    tokenize(wanted(manifest, tokenizer, corpus))
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*") if path.is_file()} == before


def test_verify_knows_the_models_tokenizer(corpus, tokenizer, tmp_path, capsys):
    """The same tokenizer saved again passes; another one is refused; a decoded sequence is shown."""
    model = tmp_path / "model"
    load_tokenizer(tokenizer).save_pretrained(model)
    (model / "config.json").write_text(json.dumps({"vocab_size": 512}))
    verify(VerifySettings(data_dir=str(corpus), model=str(model)))
    printed = capsys.readouterr().out
    assert "the model has 512 rows" in printed
    assert "one packed sequence, a colour a document:" in printed
    train_tokenizer([SOURCE_TEXT], 380).save_pretrained(model)
    with pytest.raises(FoundryError, match="not the tokenizer of"):
        verify(VerifySettings(data_dir=str(corpus), model=str(model)))


@pytest.mark.slow
def test_what_a_corpus_holds_is_shown_and_drawn(corpus, tmp_path, capsys):
    inspect(InspectSettings(data_dir=str(corpus), plot=str(tmp_path), compare=[str(corpus)]))
    printed = capsys.readouterr().out
    assert re.search(r"documents +96\n", printed)
    assert "tokens of a document" in printed
    for name in ("document_lengths.png", "tokens_by_source.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FoundryError, match="has no split other; it has train, validation"):
        inspect(InspectSettings(data_dir=str(corpus), split="other"))


def test_another_corpus_is_refused_and_overwrite_replaces_it(manifest, tokenizer, tmp_path):
    folder = tmp_path / "data"
    tokenize(wanted(manifest, tokenizer, folder, splits=["validation"]))
    (folder / "notes.md").write_text("mine")
    with pytest.raises(FoundryError, match=r"holds another corpus \(num_files: 1 -> 9, splits"):
        tokenize(wanted(manifest, tokenizer, folder))
    tokenize(wanted(manifest, tokenizer, folder, overwrite=True))
    assert TokenCorpus.open(folder).splits == ["train", "validation"]
    assert (folder / "notes.md").read_text() == "mine"


def test_a_folder_of_other_files_is_left_alone(manifest, tokenizer, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FoundryError, match="holds other files"):
        tokenize(wanted(manifest, tokenizer, tmp_path, overwrite=True))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(corpus, manifest, tokenizer, tmp_path):
    """kill -9 of the whole process group, many times: shards that were whole are kept, no token twice, none lost."""
    chance = random.Random(17)
    folder = tmp_path / "data"
    command = [
        sys.executable, "recipes/prepare_data.py", "tokenize", f"--manifest={manifest}", f"--output_dir={folder}",
        f"--tokenizer={tokenizer}", "--workers=2", "--engine=reference",
    ]  # fmt: skip
    kept: dict[str, int] = {}
    kills = 0
    for attempt in range(40):
        child = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        target = chance.randint(0, 2) if attempt < 6 else NUM_FILES
        before = len(kept)
        while child.poll() is None:
            whole = list(folder.glob("*/*.ds.json"))
            if len(whole) - before > target and not (folder / "corpus.json").exists():
                time.sleep(chance.random() * 0.05)
                os.killpg(child.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        if child.wait() == 0:
            break
        for path in folder.glob("*/*.ds.json"):
            times = kept.setdefault(str(path), path.stat().st_mtime_ns)
            assert times == path.stat().st_mtime_ns, f"{path} was made twice"
    assert child.returncode == 0
    assert kills >= 2
    assert content(folder) == content(corpus)
    assert not list(folder.rglob(".*.tmp"))


def test_nothing_lives_on_after_a_kill(manifest, tokenizer, tmp_path):
    """kill -9 of the command alone: what it started ends too, so that a pipe behind it comes to its end."""
    command = [
        sys.executable, "recipes/prepare_data.py", "tokenize", f"--manifest={manifest}", "--workers=2",
        f"--tokenizer={tokenizer}", f"--output_dir={tmp_path / 'data'}", "--engine=reference",
    ]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        wait_for(lambda: list((tmp_path / "data").glob("*/*.ds.json")), child)
        child.kill()
        child.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended, as they should
            os.killpg(child.pid, signal.SIGKILL)


STOPPED_BEFORE_EACH_CHANGE = """
import os, shutil, sys
from pathlib import Path
from modeling_foundry.data.tokenization.pipeline import tokenize
from modeling_foundry.data.tokenization.settings import TokenizeSettings

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod", "tempfile.mkstemp")
manifest, tokenizer, first, root = sys.argv[1:]

def make(folder, overwrite=False):
    tokenize(TokenizeSettings(
        manifest=manifest, tokenizer=tokenizer, output_dir=folder, workers=1, engine="reference", overwrite=overwrite
    ))

def run(folder, number=0, overwrite=False):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] >> 8
    left = number
    def stop(event, arguments):
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and folder in " ".join(map(str, arguments)):
            left -= 1
            if left == 0:
                os._exit(9)
    if number:
        sys.addaudithook(stop)
    status = 1
    try:
        make(folder, overwrite)
        status = 0
    finally:
        os._exit(status)

make(str(Path(root, "warm")))  # so that what is imported late is imported once
for number in range(1, 200):
    folder = Path(root, f"{number:03d}")
    if first != "nothing":
        shutil.copytree(first, folder)
    stopped = run(str(folder), number, first != "nothing")
    ended = run(str(folder))
    print(number, stopped, ended, flush=True)
    if stopped == 0:
        break
"""


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_stopped_before_any_change_of_a_file_it_goes_on(overwrite, source, tokenizer, tmp_path):
    """Stopped before its n-th change of the folder, for every n: the same command makes the same, and nothing else."""
    manifest, whole = tmp_path / "manifest.jsonl", tmp_path / "whole"
    make_manifest(ManifestSettings(source=str(source), output=str(manifest), include="*part_[18]*"))
    tokenize(wanted(manifest, tokenizer, whole))
    verify(VerifySettings(data_dir=str(whole)))
    first = str(whole) if overwrite else "nothing"
    command = [
        sys.executable,
        "-c",
        STOPPED_BEFORE_EACH_CHANGE,
        manifest,
        tokenizer,
        first,
        tmp_path / "runs",
    ]
    with open(tmp_path / "report", "w+") as report:
        subprocess.run([*map(str, command)], stdout=report, cwd=REPOSITORY, check=True)
        report.seek(0)
        lines = re.findall(r"^\d+ \d+ \d+$", report.read(), re.MULTILINE)
    *runs, last = [list(map(int, line.split())) for line in lines]
    assert len(runs) > 60
    assert last[1:] == [0, 0]
    names = {path.relative_to(whole) for path in whole.rglob("*") if "logs" not in path.parts}
    for number, stopped, ended in runs:
        folder = tmp_path / "runs" / f"{number:03d}"
        assert (stopped, ended) == (9, 0), f"stopped before change {number}"
        assert content(folder) == content(whole)
        found = {path.relative_to(folder) for path in folder.rglob("*") if "logs" not in path.parts}
        assert found | {Path("verified.json")} == names


def broken_source(root):
    (root / "train").mkdir(parents=True)
    good = "".join(json.dumps({"text": document(0, number)}) + "\n" for number in range(500)).encode()
    (root / "train" / "a_good.jsonl").write_bytes(good)
    (root / "train" / "b_empty.jsonl").write_bytes(b"")
    (root / "train" / "c_rows.jsonl").write_bytes(
        b'{"text": "fine"}\n{"text": \n{"no": 1}\n{"text": "\xff"}\n'
    )
    whole = zstandard.compress(good)
    (root / "train" / "d_cut.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    make_manifest(ManifestSettings(source=str(root), output=str(root / "manifest.jsonl")))
    return root / "manifest.jsonl"


def test_what_is_broken_is_counted_and_a_damaged_file_stops(tokenizer, tmp_path, capsys):
    """The other files are done first; then the run ends with the file's name, and a mended file finishes it."""
    manifest = broken_source(tmp_path / "source")
    folder = tmp_path / "data"
    with pytest.raises(FoundryError) as error:
        tokenize(wanted(manifest, tokenizer, folder))
    assert "1 of 4 files have no shard" in str(error.value)
    assert "d_cut.jsonl.zst: corrupt zstd data (ends inside a frame)" in str(error.value)
    assert not (folder / "corpus.json").exists()
    assert len(list(folder.glob("train/*.ds.json"))) == 3

    assert str(error.value).endswith(f"the reasons of all are in {folder / 'failed'}")

    tokenize(wanted(manifest, tokenizer, tmp_path / "kept", damaged_files="keep"))
    counts = TokenCorpus.open(tmp_path / "kept").content["counts"]["train"]
    assert counts["bad_rows"] == {"broken JSON": 1, "invalid UTF-8": 1, "no text": 1}
    assert counts["empty_files"] == 1
    assert len(counts["damaged"]) == 1
    assert 501 < counts["documents"] + 0 <= 1001 or counts["documents"] == 501
    printed = capsys.readouterr().out
    assert "1 row with broken JSON, 1 row with invalid UTF-8, 1 row with no text" in printed
    assert "kept up to the damage" in printed


def source_of(root, **files):
    """A manifest of JSON lines: name -> texts, or the bytes of the file."""
    for name, rows in files.items():
        split = "validation" if name.startswith("v") else "train"
        (root / split).mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode() if isinstance(rows, list) else rows
        (root / split / f"{name}.jsonl").write_bytes(lines)
    make_manifest(ManifestSettings(source=str(root), output=str(root.parent / "manifest.jsonl")))
    return root.parent / "manifest.jsonl"


GOOD = [{"text": "a text"}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"", "no rows"),
        ([{"content": "a text"}] * 3, "3 rows with no text"),
        (('{"text": "é"}\n' * 2).encode("latin-1"), "2 rows with invalid UTF-8"),
        ([{"text": ""}], "1 row with empty text"),
        (b"text\n", "1 row with broken JSON"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_is_not_complete(tokenizer, tmp_path, rows, said, split):
    """The command ended with 0 and a corpus of no tokens."""
    files = {"t": rows, "v": GOOD} if split == "train" else {"t": GOOD, "v": rows}
    manifest = source_of(tmp_path / "source", **files)
    said = rf"split {split}: none of its files gave a document: {split}/[tv]\.jsonl \({said}\); look at --text_key"
    for _ in range(2):
        with pytest.raises(FoundryError, match=said):
            tokenize(wanted(manifest, tokenizer, tmp_path / "data"))
    assert not (tmp_path / "data" / "corpus.json").exists()


def test_files_without_a_document_are_named(tokenizer, tmp_path, capsys):
    """They were counted; of many the first are named."""
    files = {f"t{number}": b"{\n" if number else GOOD for number in range(8)}
    manifest = source_of(tmp_path / "source", **files, v=GOOD, v2=b"")
    tokenize(wanted(manifest, tokenizer, tmp_path / "data"))
    printed = capsys.readouterr().out
    named = ", ".join(f"train/t{number}.jsonl (1 row with broken JSON)" for number in range(1, 6))
    assert f"train: 7 files without a document: {named} and 2 more\n" in printed
    assert "validation: 1 file without a document: validation/v2.jsonl (no rows)\n" in printed


def test_a_file_of_another_encoding_stops_by_name_or_is_kept_out(tokenizer, tmp_path, capsys):
    manifest = source_of(tmp_path / "source", t=GOOD, u='{"text": "a"}\n'.encode("utf-16"), v=GOOD)
    with pytest.raises(
        FoundryError, match=r"1 of 3 files .*train/u\.jsonl: .*is UTF-16 text, expected UTF-8"
    ):
        tokenize(wanted(manifest, tokenizer, tmp_path / "data"))
    tokenize(wanted(manifest, tokenizer, tmp_path / "data", damaged_files="keep"))
    printed = capsys.readouterr().out
    assert "train: 1 file without a document: train/u.jsonl" in printed
    assert "is UTF-16 text" in printed


def test_a_control_token_that_looks_like_markup_is_said(tmp_path, capsys):
    """Mistral's [/INST] closed a style that nobody had opened: a traceback when all was done."""
    counts = {
        "files": 1, "documents": 1, "text_bytes": 1, "tokens": 1, "empty_files": 0, "damaged": [], "mismatches": [],
        "bad_rows": {"text that becomes the control token [/INST]": 2},
    }  # fmt: skip
    print_report(console, tmp_path, {"train": counts}, {"train": []})
    assert "2 rows with text that becomes the control token [/INST]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("workers", "asked", "tasks"),
    [(2, None, 8), (64, None, 256), (300, None, 1000), (2, 5, 5), (2, 20_000, 10_000)],
)
def test_many_small_files_are_some_tasks_a_worker(workers, asked, tasks):
    """A task a file, each with its process, logs and statistics: 227 CPU seconds for 10,000 files, 15 with two."""
    assert number_of_local_tasks(10_000, workers, asked) == tasks
    assert number_of_local_tasks(3, workers, asked) == 3


# ------------------------------------------------------------------------------------ beginning of documents


def with_bos(tokenizer, folder, single="<|im_start|> $A", **config):
    """The tokenizer as Llama 3's is: its file puts the BOS before every text."""
    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    special = [("<|endoftext|>", 0), ("<|im_start|>", 1), ("<|im_end|>", 2)]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    known = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**known, "bos_token": "<|im_start|>", **config})
    )
    return folder


def all_of(folder):
    split = TokenCorpus.open(folder).split("train")
    return split.read(0, split.num_tokens)


def test_a_bos_that_documents_lack_is_said_or_put_there(corpus, manifest, tokenizer, tmp_path, capsys):
    """AutoTokenizer had it, the shards had not, and nothing was said."""
    folder = with_bos(tokenizer, tmp_path / "tokenizer")
    tokenize(wanted(manifest, folder, tmp_path / "without"))
    assert (
        f"tokenize: {folder}: AutoTokenizer puts <|im_start|> before every text, and documents here begin "
        "without it; --add_bos=true puts it there\n"
    ) in capsys.readouterr().out
    bare = all_of(corpus)
    assert np.array_equal(all_of(tmp_path / "without"), bare)
    tokenize(wanted(manifest, folder, tmp_path / "with", add_bos=True))
    assert "AutoTokenizer puts" not in capsys.readouterr().out
    expected = [[1, *ids] for ids in np.split(bare, np.flatnonzero(bare == 0) + 1)[:-1]]
    assert all_of(tmp_path / "with").tolist() == [id for ids in expected for id in ids]
    users = AutoTokenizer.from_pretrained(folder)
    assert users("a text")["input_ids"] == [1, *users("a text", add_special_tokens=False)["input_ids"]]
    tokenize(wanted(manifest, folder, tmp_path / "with", add_bos=True))
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(FoundryError, match=r"holds another corpus \(.*begins_with: \[1\] -> None"):
        tokenize(wanted(manifest, folder, tmp_path / "with"))


@pytest.mark.parametrize(
    ("single", "said"),
    [
        ("$A", ""),
        ("$A <|endoftext|>", ""),  # documents end so
        ("$A <|im_end|>", "puts <|im_end|> behind every text, and documents here end with <|endoftext|>"),
        (
            "<|im_start|> <|im_end|> $A",
            "puts <|im_start|> <|im_end|> before every text, and documents here begin",
        ),
    ],
)
def test_what_else_a_tokenizer_adds_is_said(tokenizer, tmp_path, capsys, single, said):
    # The flag alone puts no token there: AutoTokenizer goes by tokenizer.json.
    folder = with_bos(tokenizer, tmp_path / "tokenizer", single, add_bos_token=True)
    say_what_is_not_added(console, folder, 0, ())
    printed = capsys.readouterr().out
    assert (said in printed) if said else (printed == "")


def test_a_bos_that_no_tokenizer_puts_is_refused(manifest, tokenizer, tmp_path):
    with pytest.raises(FoundryError, match="add_bos: AutoTokenizer puts 0 tokens before a text of"):
        tokenize(wanted(manifest, tokenizer, tmp_path / "data", add_bos=True))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("strict", "lenient", "num_failed"),
    [
        ({"damaged_files": "stop"}, {"damaged_files": "keep"}, 1),
        ({"damaged_files": "keep", "bad_rows": "stop"}, {"damaged_files": "keep"}, 1),
    ],
)
def test_another_policy_goes_on_with_the_shards_that_keep_to_it(
    tokenizer, tmp_path, strict, lenient, num_failed
):
    """One damaged file of 59,166 was reason to tokenize all of them again."""
    manifest, folder = broken_source(tmp_path / "source"), tmp_path / "data"
    with pytest.raises(FoundryError, match=f"{num_failed} of 4 files have no shard"):
        tokenize(wanted(manifest, tokenizer, folder, **strict))
    times = {path: path.stat().st_mtime_ns for path in folder.glob("train/*.ds.json")}
    assert len(times) == 4 - num_failed
    tokenize(wanted(manifest, tokenizer, folder, **lenient))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    tokenize(wanted(manifest, tokenizer, tmp_path / "at_once", **lenient))
    assert content(folder) == content(tmp_path / "at_once")
    assert (folder / "corpus.json").read_bytes() == (tmp_path / "at_once" / "corpus.json").read_bytes()
    with pytest.raises(FoundryError, match=r"holds another corpus \((bad_rows|damaged_files): "):
        tokenize(wanted(manifest, tokenizer, folder, **strict))


def test_a_stricter_policy_makes_again_what_breaks_it(tokenizer, tmp_path):
    manifest, folder = broken_source(tmp_path / "source"), tmp_path / "data"
    tokenize(wanted(manifest, tokenizer, folder, damaged_files="keep"))
    (folder / "corpus.json").unlink()  # as if killed before it was written
    with pytest.raises(FoundryError, match="2 of 4 files have no shard"):
        tokenize(wanted(manifest, tokenizer, folder, bad_rows="stop"))


def test_bad_rows_may_stop(tokenizer, tmp_path):
    manifest = broken_source(tmp_path / "source")
    with pytest.raises(FoundryError, match=r"2 of 4 files have no shard; the first, train/c_rows\.jsonl"):
        tokenize(wanted(manifest, tokenizer, tmp_path / "data", bad_rows="stop"))


def test_a_file_changed_after_the_scan_is_refused(tokenizer, tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    (root / "a.jsonl").write_text('{"text": "before"}\n')
    make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl"), sha256=True))
    (root / "a.jsonl").write_text('{"text": "behind"}\n')
    with pytest.raises(FoundryError, match=r"a\.jsonl: not the file of the manifest"):
        tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))


KINDS_OF_FILE = {
    "a.jsonl": lambda word: json.dumps({"text": word}).encode() + b"\n",
    "a.jsonl.zst": lambda word: zstandard.compress(json.dumps({"text": word}).encode()),
    "a.txt": str.encode,
    "a.parquet": lambda word: parquet_of(word),
}


def parquet_of(word):
    import io

    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": [word]}), file := io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize("name", KINDS_OF_FILE)
@pytest.mark.parametrize("is_known", [True, False])
def test_the_hash_is_of_the_bytes_that_were_tokenized(tokenizer, tmp_path, monkeypatch, name, is_known):
    """Changed at the last moment, to a file of the same size: the hash was of what stood there a moment before."""
    path = tmp_path / "source" / name
    path.parent.mkdir()
    path.write_bytes(KINDS_OF_FILE[name]("before"))
    make_manifest(
        ManifestSettings(source=str(path.parent), output=str(tmp_path / "m.jsonl"), sha256=is_known)
    )

    def changed_now(*arguments):
        path.write_bytes(KINDS_OF_FILE[name]("behind"))
        yield from read(*arguments)

    read = tokenization.read_documents
    monkeypatch.setattr(tokenization, "read_documents", changed_now)
    if is_known:
        with pytest.raises(FoundryError, match=rf"{name}: not the file of the manifest \(SHA-256 "):
            tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))
        return
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))
    header = TokenShard.open(tmp_path / "data" / "train" / "000000.ds").header
    assert header.source["sha256"] == sha256_of_file(path)
    assert header.source["num_bytes"] == path.stat().st_size


@pytest.mark.parametrize("name", [name for name in KINDS_OF_FILE if name != "a.parquet"])
def test_a_file_is_read_once(tokenizer, tmp_path, monkeypatch, name):
    """From an object store each reading is a download.  (Parquet is read by columns, then hashed.)"""
    path = tmp_path / "source" / name
    path.parent.mkdir()
    path.write_bytes(KINDS_OF_FILE[name]("a text"))
    make_manifest(ManifestSettings(source=str(path.parent), output=str(tmp_path / "m.jsonl"), sha256=True))
    opened = []
    really = documents.open_file
    monkeypatch.setattr(documents, "open_file", lambda *names: opened.append(names) or really(*names))
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))
    assert opened == [(str(path.parent), name)]


@pytest.mark.parametrize("policy", ["stop", "keep"])
def test_another_file_that_is_damaged_too_is_said_to_be_another(tokenizer, tmp_path, policy):
    path = tmp_path / "source" / "a.jsonl.zst"
    path.parent.mkdir()
    path.write_bytes(KINDS_OF_FILE[path.name]("a text of some length"))
    make_manifest(ManifestSettings(source=str(path.parent), output=str(tmp_path / "m.jsonl"), sha256=True))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FoundryError, match=r"not the file of the manifest \(\d+ bytes, expected"):
        tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data", damaged_files=policy))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_gone_or_of_another_size_is_refused_and_the_others_go_on(tokenizer, tmp_path, workers):
    """Without its hash too.  One that was gone ended the run with a traceback."""
    root, folder = tmp_path / "source", tmp_path / "data"
    root.mkdir()
    for name in "abc":
        (root / f"{name}.jsonl").write_text('{"text": "before"}\n')
    make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl")))
    (root / "a.jsonl").unlink()
    (root / "b.jsonl").write_text('{"text": "before"}\n{"text": "after"}\n')
    with pytest.raises(
        FoundryError, match=r"2 of 3 files have no shard; the first, a\.jsonl: .*No such file"
    ):
        tokenize(wanted(tmp_path / "m.jsonl", tokenizer, folder, workers=workers))
    assert [path.name for path in folder.glob("train/*.ds.json")] == ["000002.ds.json"]
    failure = json.loads((folder / "failed" / "train-000001.ds.json").read_text())
    assert failure["reason"] == (
        "b.jsonl: not the file of the manifest (37 bytes, expected 19); scan the folder again"
    )


def test_what_is_wrong_is_said_before_the_folder_is_made(manifest, tokenizer, tmp_path):
    """The folder of a misspelt token was another corpus for the right one."""
    for changes in ({"eos_token": "<|misspelt|>"}, {"splits": []}):
        with pytest.raises(FoundryError, match=r"eos_token: <\|misspelt|splits: expected at least one"):
            tokenize(wanted(manifest, tokenizer, tmp_path / "data", **changes))
        assert not (tmp_path / "data").exists()


def test_a_full_disk_is_one_line(manifest, tokenizer, tmp_path, monkeypatch):
    """It ends the run, for every other file would fail too."""

    def write_shard(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x.ds")

    monkeypatch.setattr("modeling_foundry.data.tokenization.shard_task.write_shard", write_shard)
    with pytest.raises(
        FoundryError, match=r"data: tokenizing stopped \(x\.ds: No space left on device\); .*again"
    ):
        tokenize(wanted(manifest, tokenizer, tmp_path / "data"))
    assert not (tmp_path / "data" / "failed").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "started", [[], ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]], ids=["", "as-nohup"]
)
def test_a_worker_that_is_killed_ends_the_run(started, tokenizer, tmp_path):
    """The pool would wait for its task for ever; a shell's background jobs ignore SIGINT."""
    root = tmp_path / "source"
    root.mkdir()
    row = json.dumps({"text": SOURCE_TEXT * 20}) + "\n"
    for number in range(4):
        (root / f"{number}.jsonl").write_text(row * 4)
    make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl")))
    command = [
        sys.executable, "recipes/prepare_data.py", "tokenize", f"--manifest={tmp_path / 'm.jsonl'}",
        f"--output_dir={tmp_path / 'data'}", f"--tokenizer={tokenizer}", "--workers=2", "--engine=reference",
    ]  # fmt: skip
    child = subprocess.Popen([*started, *command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        while not (writing := list((tmp_path / "data").glob("train/.*.tmp"))) and child.poll() is None:
            time.sleep(0.02)
        os.kill(writer_of(writing[0]), signal.SIGKILL)
        _, printed = child.communicate()
    finally:
        child.kill()
    assert child.returncode == 2
    assert "was ended from outside" in printed.splitlines()[-1]
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "whole"))
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def writer_of(path):
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(path):
                return int(link.parts[2])
    raise AssertionError(f"nobody writes {path}")


@pytest.mark.slow
def test_one_large_document(tokenizer, tmp_path, monkeypatch):
    """Larger than a batch: one document, with the ids of the whole."""
    root = tmp_path / "source"
    root.mkdir()
    monkeypatch.setattr("modeling_foundry.data.tokenization.shard_task.BATCH_CHARACTERS", 100_000)
    text = (SOURCE_TEXT + "\n") * (500_000 // len(SOURCE_TEXT))
    (root / "a.txt").write_text(text)
    make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl")))
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data", engine="auto"))
    train = TokenCorpus.open(tmp_path / "data").split("train")
    assert train.num_documents == 1
    backend = load_tokenizer(tokenizer).backend_tokenizer
    expected = backend.encode(text, add_special_tokens=False).ids
    assert np.array_equal(train.read(0, train.num_tokens), np.array([*expected, 0]))


def test_a_document_no_tokenizer_takes_is_counted(tokenizer, tmp_path):
    """Oniguruma, under the tokenizers library, gives up on a run of millions of blanks."""
    root = tmp_path / "source"
    root.mkdir()
    rows = [{"text": "before"}, {"text": "x" + " " * 6_000_000 + "y"}, {"text": "after"}]
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_manifest(ManifestSettings(source=str(root), output=str(tmp_path / "m.jsonl")))
    tokenize(wanted(tmp_path / "m.jsonl", tokenizer, tmp_path / "data"))
    counts = TokenCorpus.open(tmp_path / "data").content["counts"]["train"]
    assert counts["documents"] == 2
    assert sum(counts["bad_rows"].values()) == 1


def test_batches_keep_order_and_lose_nothing():
    texts = ["aaaa", "bbbbbb", "c", "d" * 30, "", "e"]
    found = list(batches_of(texts, 10))
    assert [text for batch in found for text in batch] == texts
    assert all(len(batch) == 1 or sum(map(len, batch)) <= 10 for batch in found)


FAKE_SBATCH = """#!{python}
import os, re, subprocess, sys
script = open(sys.argv[-1]).read()
last = int(re.search(r"--array=0-(\\d+)", script).group(1))
for number in range(last + 1):
    subprocess.run(["bash", "-c", script], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env={{**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_NODELIST": "node1"}})
print("Submitted batch job 4711")
"""


@pytest.mark.slow
def test_slurm_gets_a_job_array(corpus, manifest, tokenizer, tmp_path):
    """A stand-in for sbatch that runs the very script datatrove submits, one array place after the other."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("sbatch", FAKE_SBATCH.format(python=sys.executable)),
        ("scontrol", "#!/bin/bash\necho node1\n"),
        ("srun", '#!/bin/bash\nshift 3\nexec "$@"\n'),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod((programs / name).stat().st_mode | stat.S_IEXEC)
    command = [
        sys.executable, "recipes/prepare_data.py", "tokenize", f"--manifest={manifest}",
        f"--output_dir={tmp_path / 'data'}", f"--tokenizer={tokenizer}", "--engine=reference", "--executor=slurm",
        "--num_tasks=2", "--slurm={partition: cpu, time: '1:00:00'}",
    ]  # fmt: skip
    path = os.pathsep.join([str(programs), os.path.dirname(sys.executable), os.environ["PATH"]])
    first = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert first.returncode == 0, first.stderr
    assert "SLURM job 4711 with 2 tasks makes 9 shards" in first.stdout
    assert not (tmp_path / "data" / "corpus.json").exists()
    second = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert second.returncode == 0, second.stderr
    assert content(tmp_path / "data") == content(corpus)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": ["nope"]}, "splits: nope is not in the manifest; it has train, validation"),
        ({"tokenizer": "no/such"}, "no/such is neither a folder nor in the local Hub cache"),
        ({"eos_token": "<eos>"}, "eos_token: <eos> is not a token of"),
        ({"manifest": "nowhere.jsonl"}, r"nowhere.jsonl \(/.*\): cannot read the manifest"),
    ],
)
def test_bad_input_is_named(manifest, tokenizer, tmp_path, changes, message):
    with pytest.raises(FoundryError, match=message):
        tokenize(replace(wanted(manifest, tokenizer, tmp_path / "data"), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers: expected -1 or at least 1"),
        ({"executor": "slurm"}, "slurm: expected at least partition and time"),
        ({"num_tasks": 0}, "num_tasks: expected at least 1"),
    ],
)
def test_settings_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        wanted("m", "t", "f", **changes)


@pytest.mark.slow
def test_ray_gives_the_same_corpus(corpus, manifest, tokenizer, tmp_path):
    pytest.importorskip("ray", reason="needs the data-ray extra")
    tokenize(wanted(manifest, tokenizer, tmp_path / "data", executor="ray", workers=2, num_tasks=3))
    assert content(tmp_path / "data") == content(corpus)
