"""Corpus, split and samples: what is held out stays held out, and preparing twice does nothing twice."""

import json
import subprocess
import sys

import pytest

from modeling_foundry.data.corpus import (
    Module,
    family_of,
    is_held_out,
    read_standard_library,
    split_modules,
)
from modeling_foundry.data.folder import load_prepared
from modeling_foundry.data.functions import documented_functions, first_sentence, preference_pairs
from modeling_foundry.data.preparation import prepare
from modeling_foundry.data.settings import DataSettings
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def modules():
    return read_standard_library()[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    # a third of the library is enough, and held-out families are among it
    settings = DataSettings(str(folder), vocab_size=512, max_modules=150, held_out_fraction=0.2)
    prepare(settings)
    return settings


def rows(folder, name):
    with open(f"{folder}/{name}") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("json.decoder", "json"), ("test.test_json.test_dump", "json"), ("test.test_tarfile", "tarfile"),
        ("_strptime", "strptime"), ("_pyio", "io"), ("_pydecimal", "decimal"), ("__future__", "future"),
        ("pydoc", "pydoc"), ("py_compile", "py_compile"),
    ],
)  # fmt: skip
def test_what_belongs_together_has_one_family(name, family):
    assert family_of(name) == family


def test_the_split_is_a_pure_function_of_the_family():
    # Fixed by the salt: these literals change only when the split does, and then every published number with it.
    held_out = {"tarfile", "ipaddress", "logging", "urllib", "shlex", "tomllib"}
    assert all(is_held_out(family, 0.1) for family in held_out)
    assert not any(is_held_out(family, 0.1) for family in ("asyncio", "json", "email", "collections"))


def test_no_family_is_on_both_sides_and_nothing_is_shipped_apart(modules):
    train, held_out = split_modules(modules, 0.1)
    assert not {m.family for m in train} & {m.family for m in held_out}
    assert len({m.name for m in modules}) == len(modules)
    assert len({m.text for m in modules}) == len(modules)
    tops = {m.name.split(".")[0] for m in modules}
    assert not tops & {"idlelib", "tkinter", "lib2to3", "test", "encodings", "site-packages", "distutils"}
    assert tops <= set(sys.stdlib_module_names)
    assert 0.03 < sum(len(m.text) for m in held_out) / sum(len(m.text) for m in modules) < 0.2


def test_a_side_may_not_be_empty(modules):
    with pytest.raises(FoundryError, match="held_out_fraction"):
        split_modules([m for m in modules if m.family == "asyncio"], 0.1)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum. And more.", "Return the sum."),
        ("Return\n    the sum of\n    both\n\nDetails.", "Return the sum of both."),
        (">>> add(1, 2) is three words", None),
        ("Two words", None),
        ("Set it to the following:", None),
        ("word " * 40, None),
        ("Return the name (or", None),
        ("Gibt die Größe zurück hier", None),
        (None, None),
    ],
)
def test_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_functions_are_real_and_public():
    source = (
        'class Tree:\n    def depth(self, node=None):\n        """Return the depth of a node."""\n'
        '    def _hidden(self):\n        """Return what is hidden here."""\n'
        'def undocumented(): pass\nasync def wait(n: int) -> None:\n    """Wait for n seconds."""\n'
    )
    found = documented_functions([Module("tree", source), Module("copy", source), Module("broken", "def (")])
    assert [(f.name, f.signature, f.summary) for f in found] == [
        ("Tree.depth", "class Tree:\n    def depth(self, node=None):", "Return the depth of a node."),
        ("wait", "async def wait(n: int):", "Wait for n seconds."),
    ]


def test_rejected_answers_are_real_and_wrong(modules):
    functions = documented_functions(modules[:80])
    own = {(f.module, f.name): f.summary for f in functions}
    pairs = preference_pairs(functions)
    assert len(pairs) == len(functions)
    summaries = set(own.values())
    for pair in pairs:
        chosen, rejected = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert chosen == own[pair["module"], pair["function"]]
        assert rejected in summaries
        assert rejected != chosen
    assert pairs == preference_pairs(functions)
    assert {pair["difficulty"] for pair in pairs} == {"same module", "any module"}


def test_held_out_modules_stay_held_out_in_every_file(prepared):
    folder = prepared.output_dir
    held_out = {row["module"] for row in rows(folder, "heldout.jsonl")}
    for stage in ("sft", "dpo"):
        assert {row["module"] for row in rows(folder, f"{stage}_heldout.jsonl")} <= held_out
        assert not {row["module"] for row in rows(folder, f"{stage}_train.jsonl")} & held_out
    trained = {row["messages"][1]["content"] for row in rows(folder, "sft_train.jsonl")}
    for row in rows(folder, "dpo_train.jsonl"):
        assert row["rejected"][0]["content"] in trained, "a held-out answer leaked as a rejected one"


def test_prepared_once_is_prepared(prepared, capsys):
    first = load_prepared(prepared.output_dir).fingerprint
    prepare(prepared)
    assert "complete already" in capsys.readouterr().out
    assert load_prepared(prepared.output_dir).fingerprint == first
    other = DataSettings(prepared.output_dir, vocab_size=600, max_modules=150, held_out_fraction=0.2)
    with pytest.raises(FoundryError, match=r"prepared otherwise \(vocab_size: 512 -> 600\)"):
        prepare(other)


def test_preparing_again_gives_the_same_bytes(prepared, tmp_path):
    again = DataSettings(str(tmp_path / "again"), vocab_size=512, max_modules=150, held_out_fraction=0.2)
    prepare(again)
    first, second = (load_prepared(s.output_dir).manifest["files"] for s in (prepared, again))
    assert first == second


@pytest.mark.parametrize("name", ["train.ds", "tokenizer/tokenizer.json", "sft_train.jsonl"])
def test_a_changed_file_is_named(prepared, tmp_path, name):
    import shutil

    copy = tmp_path / "data"
    shutil.copytree(prepared.output_dir, copy)
    with open(copy / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(FoundryError, match=f"{name}: differs"):
        load_prepared(copy)
    (copy / "data.json").unlink()
    with pytest.raises(FoundryError, match=r"data\.json is missing"):
        load_prepared(copy)


def run(*arguments):
    command = [sys.executable, "recipes/prepare_data.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_any_text_file(tmp_path):
    text = tmp_path / "input.txt"
    text.write_text("".join(f"line {i} of the play, spoken by {i % 7}\n" for i in range(3000)))
    finished = run(f"--text_file={text}", f"--output_dir={tmp_path / 'out'}", "--vocab_size=300")
    assert finished.returncode == 0, finished.stderr
    data = load_prepared(tmp_path / "out")
    held_out = rows(tmp_path / "out", "heldout.jsonl")[0]["text"]
    assert text.read_text().endswith(held_out)
    assert data.shard("train").header.num_tokens > 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short to split"),
        (b"one line", "too short to split"),
        (b"\xff\xfe\n" * 50, "byte 0 is not UTF-8"),
    ],
)
def test_a_text_file_that_cannot_be_used_is_one_line(tmp_path, content, message):
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    finished = run(f"--text_file={path}", f"--output_dir={tmp_path / 'out'}")
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_settings_that_make_no_sense_are_refused():
    for argument, message in [
        ("--held_out_fraction=1.5", "held_out_fraction: expected a number between 0 and 1"),
        ("--vocab_size=10", "vocab_size: expected at least 300"),
        ("--source=text_file", "text_file: missing"),
        ("--text_file=absent.txt", "absent.txt: cannot read the text file"),
    ]:
        finished = run(argument, "--output_dir=/nonexistent/data")
        assert (finished.returncode, finished.stderr.count("error:")) == (2, 1)
        assert message in finished.stderr
