"""The prepared folder: held out stays held out, interrupted goes on, complete does nothing, foreign is kept."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_foundry.data.preparation import pipeline as preparation
from modeling_foundry.data.preparation.pipeline import prepare
from modeling_foundry.data.preparation.settings import DataSettings
from modeling_foundry.data.preparation.standard_library import is_held_out
from modeling_foundry.data.tokens.prepared import OWN_FILES, load_prepared
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY, closed_files

FUNCTION = '''def {name}_{i}(value, number={i}):
    """Return the {name} of number {i} in its {word} form."""
    return value.{name}(number)


'''


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small standard library of its own: real module names, so that the real split applies."""
    root = tmp_path_factory.mktemp("library")
    for name in ("json", "csv", "copy", "ast", "shlex", "pprint", "trace"):
        words = ("plain", "short", "long", "other")
        (root / f"{name}.py").write_text(
            "".join(FUNCTION.format(name=name, i=i, word=words[i % 4]) for i in range(8))
        )
    return root


@pytest.fixture
def small(library, monkeypatch):
    """Preparation reads the small library."""
    real = preparation.read_standard_library
    monkeypatch.setattr(
        preparation, "read_standard_library", lambda tests, number: real(tests, number, root=library)
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A third of the real library."""
    folder = tmp_path_factory.mktemp("data") / "data"
    settings = DataSettings(str(folder), vocab_size=512, max_modules=120, held_out_fraction=0.2)
    prepare(settings)
    return settings


def small_settings(folder, **options):
    return DataSettings(str(folder), vocab_size=300, **options)


def rows(folder, name):
    with open(f"{folder}/{name}", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_held_out_modules_stay_held_out_in_every_file(prepared):
    folder = prepared.output_dir
    assert not closed_files(Path(folder))
    held_out = {row["module"] for row in rows(folder, "heldout.jsonl")}
    for stage in ("sft", "dpo"):
        assert {row["module"] for row in rows(folder, f"{stage}_heldout.jsonl")} <= held_out
        assert not {row["module"] for row in rows(folder, f"{stage}_train.jsonl")} & held_out
    answers = {
        split: {row["messages"][1]["content"] for row in rows(folder, f"sft_{split}.jsonl")}
        for split in ("train", "heldout")
    }
    assert not answers["train"] & answers["heldout"]
    for split, own in answers.items():
        assert {row["rejected"][0]["content"] for row in rows(folder, f"dpo_{split}.jsonl")} <= own


def test_the_shards_hold_the_texts(prepared):
    from modeling_foundry.data.tokenizer.training import load_tokenizer

    data = load_prepared(prepared.output_dir)
    tokenizer = load_tokenizer(data.tokenizer_folder)
    shard = data.shard("heldout")
    shard.verify()
    data.shard("train").verify()
    texts = [row["text"] for row in rows(prepared.output_dir, "heldout.jsonl")]
    start = 0
    for text, end in zip(texts, shard.document_ends().tolist(), strict=True):
        ids = shard.tokens()[start:end].tolist()
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text
        start = end
    table = data.manifest["statistics"]["table"]
    assert table["tokens"] == [data.shard(split).header.num_tokens for split in ("train", "heldout")]
    assert table["bytes"][1] == sum(len(text.encode()) for text in texts)
    assert set(data.manifest["files"]) >= set(OWN_FILES)


def test_prepared_once_is_prepared(prepared, capsys, monkeypatch):
    first = load_prepared(prepared.output_dir).fingerprint
    prepare(prepared)
    assert "complete already" in capsys.readouterr().out
    assert load_prepared(prepared.output_dir).fingerprint == first
    other = DataSettings(prepared.output_dir, vocab_size=600, max_modules=120, held_out_fraction=0.2)
    with pytest.raises(FoundryError, match=r"prepared otherwise \(vocab_size: 512 -> 600\); give another"):
        prepare(other)
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    with pytest.raises(FoundryError, match=r"prepared otherwise \(python: \S+ \S+ -> \S+ 3\.99\.0\)"):
        prepare(prepared)


@pytest.mark.parametrize("name", ["train.ds", "tokenizer/tokenizer.json", "sft_train.jsonl"])
def test_a_changed_file_is_named(small, tmp_path, name):
    folder = prepare(small_settings(tmp_path / "data"))
    with open(folder / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(FoundryError, match=f"{name}: differs"):
        load_prepared(folder)
    with pytest.raises(FoundryError, match=f"{name}: differs"):
        prepare(small_settings(folder))
    (folder / name).unlink()
    with pytest.raises(FoundryError, match=f"{name}: missing"):
        load_prepared(folder)


def test_a_broken_manifest_is_said(small, tmp_path):
    folder = prepare(small_settings(tmp_path / "data"))
    (folder / "data.json").write_text('{"files": []}')
    with pytest.raises(FoundryError, match=r"data\.json: not a data manifest"):
        prepare(small_settings(folder))
    (folder / "data.json").unlink()
    with pytest.raises(FoundryError, match=r"data\.json is missing"):
        load_prepared(folder)


class Killed(BaseException):
    """As little caught as a signal."""


def test_killed_before_any_rename_it_goes_on_and_gives_the_same_bytes(small, tmp_path, monkeypatch, capsys):
    whole = load_prepared(prepare(small_settings(tmp_path / "whole"))).manifest["files"]
    real, survived = os.replace, 0
    while True:
        folder, allowed = tmp_path / f"killed_{survived}", iter(range(survived))

        def replace(source, target, allowed=allowed):
            if next(allowed, None) is None:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        try:
            prepare(small_settings(folder))
            break
        except Killed:
            assert not (folder / "data.json").exists()
        monkeypatch.setattr(os, "replace", real)
        capsys.readouterr()
        prepare(small_settings(folder))
        assert load_prepared(folder).manifest["files"] == whole
        assert ("going on with" in capsys.readouterr().out) == (survived > 0)
        assert {path.name for path in folder.iterdir()} == {
            path.name for path in (tmp_path / "whole").iterdir()
        }
        survived += 1
    assert survived > 10, "every file of the folder was a point to be killed at"


def test_what_is_whole_is_not_made_again(small, tmp_path, monkeypatch):
    folder = prepare(small_settings(tmp_path / "data"))
    plan = json.dumps(preparation.content_of(small_settings(folder)), indent=1, sort_keys=True) + "\n"
    (folder / "preparing.json").write_text(plan)
    (folder / "data.json").unlink()
    (folder / "heldout.ds").write_bytes(b"torn")
    written = []
    real = preparation.write_shard
    monkeypatch.setattr(
        preparation, "write_shard", lambda path, *rest: written.append(path.name) or real(path, *rest)
    )
    monkeypatch.setattr(preparation, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was whole"))
    prepare(small_settings(folder))
    assert written == ["heldout.ds"]
    load_prepared(folder)


def test_another_unfinished_preparation_is_not_gone_on_with(small, tmp_path):
    folder = prepare(small_settings(tmp_path / "data"))
    whole = load_prepared(folder).manifest["files"]
    (folder / "preparing.json").write_text("{}")
    (folder / "data.json").unlink()
    (folder / "train.ds.json").write_text("{}")
    prepare(small_settings(folder))
    assert load_prepared(folder).manifest["files"] == whole


def test_overwriting_touches_no_foreign_file(small, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "thesis.tex").write_text("ten years of work")
    prepare(small_settings(folder))
    prepare(small_settings(folder, held_out_fraction=0.11, overwrite=True))
    assert (folder / "thesis.tex").read_text() == "ten years of work"
    manifest = load_prepared(folder).manifest
    assert manifest["settings"]["held_out_fraction"] == 0.11
    assert "thesis.tex" not in manifest["files"]


def test_too_few_functions_are_said(library, tmp_path, monkeypatch):
    root = tmp_path / "library"
    shutil.copytree(library, root)
    for path in root.iterdir():
        if is_held_out(path.stem, 0.1):
            path.write_text("value = 1  # " + path.stem)
    real = preparation.read_standard_library
    monkeypatch.setattr(preparation, "read_standard_library", lambda *_: real(root=root))
    with pytest.raises(FoundryError, match=r"0 documented function\(s\) in the held-out modules"):
        prepare(small_settings(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_text_file_is_known_by_its_content(tmp_path, capsys):
    first, moved = tmp_path / "input.txt", tmp_path / "moved.txt"
    first.write_text("".join(f"line {i} of the play, spoken by {i % 7}\n" for i in range(300)))
    folder = prepare(DataSettings(str(tmp_path / "data"), text_file=str(first), vocab_size=300))
    held_out = rows(folder, "heldout.jsonl")[0]["text"]
    assert first.read_text().endswith(held_out)
    assert not (folder / "sft_train.jsonl").exists()
    first.rename(moved)
    capsys.readouterr()
    prepare(DataSettings(str(folder), text_file=str(moved), vocab_size=300))
    assert "complete already" in capsys.readouterr().out
    moved.write_text(moved.read_text() + "one line more\n")
    with pytest.raises(FoundryError, match="prepared otherwise.*text_file_sha256"):
        prepare(DataSettings(str(folder), text_file=str(moved), vocab_size=300))


def run(*arguments):
    command = [sys.executable, "recipes/prepare_data.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.slow
def test_the_command(tmp_path):
    config = ["--config", "recipes/quickstart/data.yaml"]
    smaller = [
        "--max_modules=40",
        "--held_out_fraction=0.2",
        "--vocab_size=300",
        f"--output_dir={tmp_path / 'data'}",
    ]
    finished = run(*config, *smaller)
    assert finished.returncode == 0, finished.stderr
    assert "bytes per token" in finished.stdout
    load_prepared(tmp_path / "data")
    again = run(*config, *smaller)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty.txt").touch()
    finished = run(f"--text_file={tmp_path / 'empty.txt'}", f"--output_dir={tmp_path / 'out'}")
    assert finished.returncode == 2
    assert finished.stderr == f"error: {tmp_path / 'empty.txt'}: empty; expected some lines of text\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FoundryError, match="cannot write there"):
        prepare(small_settings(tmp_path / "file" / "data"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out_fraction": 1.5}, "held_out_fraction: expected a number between 0 and 1"),
        ({"vocab_size": 10}, "vocab_size: expected at least 300"),
        ({"source": "text_file"}, "text_file: missing"),
        ({"max_modules": 1}, "max_modules: expected at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**options)
