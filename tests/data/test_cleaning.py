"""Cleaning: every row is kept, removed or malformed; interrupted it goes on; what cannot run is refused by name."""

import contextlib
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from datatrove.data import Document
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.data import commands
from modeling_foundry.data.cleaning.pipeline import clean
from modeling_foundry.data.cleaning.readers import reader_of
from modeling_foundry.data.cleaning.settings import CleanSettings
from modeling_foundry.data.sources import input_files
from modeling_foundry.data.tokens import mapped_files
from modeling_foundry.data.workers import stages as pipeline
from modeling_foundry.data.workers.executors import num_workers
from modeling_foundry.data.workers.stages import QuietExecutor, RemovedWriter, Stage, run_stage
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY
from tests.waits import wait_for

FILTERS = ["gopher_repetition", "gopher_quality", "c4_quality", "fineweb_quality"]
WORDS = (
    "river mountain letter garden window morning teacher bridge winter village market engine painter story "
    "harbor forest kitchen doctor season island question journey candle mirror orchard railway sailor shadow"
).split()
LINKS = "the be to of and that have with near under beyond against from into over before".split()
QUESTION = (
    "In which of these harbours did the painter meet the old sailor before the long winter journey began?"
)


def prose(seed, num_sentences=12):
    """Text that the quality filters keep."""
    draw = random.Random(seed)
    sentences = []
    for _ in range(num_sentences):
        words = [draw.choice(LINKS) if draw.random() < 0.4 else draw.choice(WORDS) for _ in range(14)]
        sentences.append(" ".join(words).capitalize() + ".")
    return "\n".join(" ".join(sentences[i : i + 3]) for i in range(0, num_sentences, 3))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":  # two frames, as pzstd writes
        middle = len(data) // 2
        data = b"".join(zstandard.compress(part) for part in (data[:middle], data[middle:]))
    path.write_bytes(data)


BROKEN = {
    b'{"text": "abc': "broken_json",
    b'{"text": "\xff\xfe"}': "invalid_utf8",
    b"": "blank_line",
    b"[1, 2]": "not_an_object",
    b'{"other": 1}': "missing_text",
    b'{"text": null}': "missing_text",
    b'{"text": 3}': "text_not_a_string",
    b'{"text": " \\n"}': "empty_text",
    b'{"text": "\\ud800"}': "broken_json",
}


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


def write_corpus(folder):
    """Three files: prose, broken rows, what each filter removes, duplicates and near duplicates."""
    first = [{"text": prose(i), "id": i, "rank": "../../stolen", "filter_reason": "old"} for i in range(6)]
    write_lines(folder / "a.jsonl", [*first, *BROKEN])
    second = [
        {"text": "Too short."},
        {"text": prose(20, 3) * 9},
        {"text": prose(21) + "\nThis line has { a curly bracket in it, and that is code."},
        {"text": prose(22).replace(".", "")},
        {"text": prose(2)},
        {"text": prose(3).replace("river", "brook")},
    ]
    write_lines(folder / "sub" / "b.jsonl.gz", second)
    write_lines(folder / "c.jsonl.zst", [{"text": prose(i)} for i in range(40, 45)] + [{"text": prose(2)}])
    (folder / "notes.txt").write_text("not ours")
    return folder


def cleaned(corpus, tmp_path, name="out", **options):
    options = {"filters": FILTERS, **options}
    return clean(CleanSettings(str(corpus), str(tmp_path / name), **options))


def manifest_of(folder):
    return json.loads((folder / "clean.json").read_text())


def rows(folder, pattern="documents/*.gz"):
    found = []
    for path in sorted(folder.glob(pattern)):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            found += [json.loads(line) for line in file]
    return found


def contents(folder):
    """What equal cleanings have in common: gzip writes the time into its files."""
    return {
        name: (facts["rows"], facts["text_sha256"]) for name, facts in manifest_of(folder)["files"].items()
    }


# ------------------------------------------------------------------------------------------------ the books


@pytest.mark.slow
def test_every_row_is_kept_removed_or_malformed(corpus, tmp_path, capsys):
    folder = cleaned(corpus, tmp_path, dedup="exact")
    manifest = manifest_of(folder)
    assert manifest["summary"]["rows"] == 6 + len(BROKEN) + 6 + 6
    malformed = rows(folder, "removed/malformed/*.gz")
    expected = [(f"a.jsonl:{7 + i}", reason) for i, reason in enumerate(BROKEN.values())]
    assert [(row["id"], row["metadata"]["filter_reason"]) for row in malformed] == expected
    assert malformed[1]["text"] == '{"text": "\\xff\\xfe"}'
    total = {reason: list(BROKEN.values()).count(reason) for reason in BROKEN.values()}
    assert manifest["summary"]["malformed"] == total

    kept = rows(folder)
    removed = [row for row in rows(folder, "removed/*/*.gz") if row not in malformed]
    assert len(kept) + len(removed) + len(malformed) == manifest["summary"]["rows"]
    sources = [row["metadata"]["clean_source"] for row in [*kept, *removed, *malformed]]
    assert len(set(sources)) == len(sources)
    before = manifest["summary"]["documents"]
    for step in manifest["steps"]:
        assert step["in"] == before
        for unit in ("documents", "bytes"):
            gone = sum(facts[unit] for facts in step["removed"].values())
            cut = step["cut_bytes"] if unit == "bytes" else 0
            assert step["in"][unit] == step["out"][unit] + gone + cut
        of_step = rows(folder, f"removed/{step['name']}/*.gz")
        for reason, facts in step["removed"].items():
            texts = [row["text"] for row in of_step if row["metadata"]["filter_reason"] == reason]
            assert facts == {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
        before = step["out"]
    assert before == manifest["summary"]["left"]
    assert before == {"documents": len(kept), "bytes": sum(len(row["text"].encode()) for row in kept)}
    printed = capsys.readouterr().out
    assert "malformed: broken_json" in printed
    assert "dedup_exact" in printed


def test_metadata_is_kept_and_chooses_no_file(corpus, tmp_path):
    folder = cleaned(corpus, tmp_path)
    row = next(row for row in rows(folder) if row["id"] == "0")
    assert row["metadata"] == {
        "rank": "../../stolen", "earlier_filter_reason": "old", "clean_source": "a.jsonl:1",
    }  # fmt: skip
    names = {path.name for path in (folder / "documents").iterdir()}
    assert names <= {"00000.jsonl.gz", "00001.jsonl.gz", "00002.jsonl.gz"}
    assert not list(tmp_path.rglob("*stolen*"))


def test_the_filters_do_what_datatrove_does(corpus, tmp_path):
    from datatrove.pipeline import filters

    steps = (
        filters.GopherRepetitionFilter,
        filters.GopherQualityFilter,
        filters.C4QualityFilter,
        filters.FineWebQualityFilter,
    )
    folder = cleaned(corpus, tmp_path)
    lines = [*(corpus / "a.jsonl").read_bytes().splitlines()[:6]]
    lines += gzip.decompress((corpus / "sub" / "b.jsonl.gz").read_bytes()).splitlines()
    documents = [Document(json.loads(line)["text"], str(i)) for i, line in enumerate(lines)]
    expected = documents
    for step in steps:
        expected = list(step().run(expected))
    found = [row["text"] for row in rows(folder) if not row["metadata"]["clean_source"].startswith("c.")]
    assert found == [document.text for document in expected]
    assert 0 < len(found) < len(documents)
    reasons = {row["metadata"]["filter_reason"] for row in rows(folder, "removed/[gcf]*/*.gz")}
    assert {"top_2_gram", "curly_bracket", "too_few_sentences"} <= reasons


def test_options_reach_the_filter(corpus, tmp_path):
    short = cleaned(corpus, tmp_path, filters=["gopher_quality"])
    options = {"gopher_quality": {"min_doc_words": 1, "min_stop_words": 0, "max_non_alpha_words_ratio": 0.5}}
    long = cleaned(corpus, tmp_path, "long", filters=["gopher_quality"], filter_options=options)
    texts = [{row["text"] for row in rows(folder)} for folder in (short, long)]
    assert texts[1] - texts[0] == {"Too short."}


@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(BROKEN)),
            st.binary(max_size=20).map(lambda line: line.replace(b"\n", b" ")),
            st.dictionaries(
                st.sampled_from(["text", "id", "metadata", "media"]), st.text(max_size=5) | st.integers()
            ),
        ),
        max_size=12,
    )
)
@settings(max_examples=60)
def test_any_lines_are_all_accounted_for(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("rows")
    write_lines(folder / "a.jsonl", lines)
    (folder / "paths").write_text("a.jsonl\n")
    writer = RemovedWriter(folder / "removed", "malformed")
    reader = reader_of("jsonl", str(folder), str(folder / "paths"), "text", "id", writer)
    documents = list(reader.run())
    malformed = rows(folder, "removed/*.gz")
    assert len(documents) + len(malformed) == len(lines)
    assert reader.stats["rows"].total == len(lines)
    for document in documents:
        assert document.text.strip()
        assert isinstance(document.id, str)


# ------------------------------------------------------------------------------------------------ formats


def test_parquet_rows_are_accounted_for(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    bad = pyarrow.array([b"fine text", b"\xff\xfe", b"more text", None, b" "], pyarrow.binary())
    bad = pyarrow.StringArray.from_buffers(5, *bad.buffers()[1:], bad.buffers()[0])
    table = pyarrow.table({"content": bad, "n": [1, 2, 3, 4, 5]})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    write_lines(folder / "b.jsonl", [{"content": "from lines"}, b"{"])
    out = cleaned(folder, tmp_path, filters=[], text_key="content")
    assert [row["text"] for row in rows(out)] == ["from lines", "fine text", "more text"]
    assert rows(out)[1]["metadata"] == {"n": 1, "clean_source": "a.parquet:0"}
    reasons = {"invalid_utf8": 1, "missing_text": 1, "empty_text": 1, "broken_json": 1}
    assert manifest_of(out)["summary"]["malformed"] == reasons
    assert len(rows(out, "removed/malformed/*.gz")) == 4


def test_files_that_are_not_read_are_said(corpus, tmp_path, capsys):
    (corpus / "notes.txt").write_text("not read")
    (corpus / "more.json").write_text("not read")
    cleaned(corpus, tmp_path, filters=[])
    assert "clean: 2 files of other kinds are not read: more.json, notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a.JSONL", "a.ndjson", "a.json.gz", "a.jsonl.zstd"])
def test_every_ending_that_the_manifest_knows_is_read(tmp_path, name):
    line = json.dumps({"text": "The only row of this file."}).encode() + b"\n"
    pack = {".gz": gzip.compress, ".zstd": zstandard.compress}.get(f".{name.rsplit('.', 1)[1]}", bytes)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / name).write_bytes(pack(line))
    out = cleaned(tmp_path / "corpus", tmp_path, filters=[])
    assert [row["text"] for row in rows(out)] == ["The only row of this file."]


@pytest.mark.parametrize(
    ("num_files", "num_bytes", "tasks"),
    [(3, 1 << 40, 3), (64, 10, 64), (10_000, 10, 64), (10_000, 1 << 20, 312), (10_000, 1 << 30, 400)],
)
def test_many_small_files_are_few_tasks(num_files, num_bytes, tasks, tmp_path, monkeypatch):
    """A task a file: its process and files cost more than ten thousand tiny texts."""
    monkeypatch.setattr(input_files.os, "stat", lambda path: SimpleNamespace(st_size=num_bytes))
    names = [f"{number}.jsonl" for number in range(num_files)]
    assert input_files.InputFiles(tmp_path, {"jsonl": names, "parquet": []}).num_tasks == tasks


def test_more_files_than_tasks_are_all_read(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "FEWEST_TASKS", 2)
    for number in range(5):
        write_lines(tmp_path / "corpus" / f"{number}.jsonl", [{"text": prose(number)}, {"text": prose(0)}])
    out = cleaned(tmp_path / "corpus", tmp_path, filters=[], dedup="exact")
    assert len(list((out / "documents").glob("*.gz"))) == 2
    assert {row["text"] for row in rows(out)} == {prose(number) for number in range(5)}
    assert len(rows(out)) == 5


def test_too_few_open_files_for_the_duplicates_is_one_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_files.resource, "getrlimit", lambda _: (102, 1024))
    with pytest.raises(FoundryError, match="may open 102, expected at least 103; raise the limit"):
        cleaned(corpus, tmp_path, filters=[], dedup="exact")


def test_a_glob_and_a_single_file(corpus, tmp_path):
    out = cleaned(f"{corpus}/**/*.jsonl.gz", tmp_path, filters=[])
    assert {row["metadata"]["clean_source"].split(":")[0] for row in rows(out)} == {"sub/b.jsonl.gz"}
    out = cleaned(corpus / "c.jsonl.zst", tmp_path, "single", filters=[])
    assert len(rows(out)) == 6, "both frames of the file"


@pytest.mark.parametrize("kind", ["int8", "int32", "int64"])
def test_one_bad_row_of_a_dictionary_costs_no_other(tmp_path, kind):
    """As pandas writes its categories, numbered in 8 bits: the file could not be read."""
    words = pyarrow.array([b"fine text", b"\xff", b"more text"], pyarrow.binary())
    words = pyarrow.StringArray.from_buffers(3, *words.buffers()[1:], words.buffers()[0])
    places = pyarrow.array([0, 1, None, 2], getattr(pyarrow, kind)())
    folder = tmp_path / "corpus"
    folder.mkdir()
    column = pyarrow.DictionaryArray.from_arrays(places, words)
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), folder / "a.parquet")
    out = cleaned(folder, tmp_path, filters=[])
    assert [row["text"] for row in rows(out)] == ["fine text", "more text"]
    assert manifest_of(out)["summary"]["malformed"] == {"invalid_utf8": 1, "missing_text": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a[1]", "std::vector"])
def test_names_that_mean_something_to_a_library_are_names(corpus, tmp_path, name):
    """In a folder ``a[1]`` datatrove, looking for signatures by a pattern, found none: no duplicate was removed."""
    place = tmp_path / name
    place.mkdir()
    corpus.rename(place / name)
    (place / name / "c.jsonl.zst").rename(place / name / f"{name}.jsonl.zst")
    write_lines(place / "items.jsonl", [{"text": " ".join(prose(40).split()[:20])}])
    items = [str(place / "items.jsonl")]
    for dedup, reason, number in (("exact", "duplicate", 2), ("minhash", "near_duplicate", 3)):
        out = cleaned(place / name, place, f"{name} {dedup}", filters=[], dedup=dedup, decontaminate=items)
        steps = {step["name"]: step["removed"] for step in manifest_of(out)["steps"]}
        assert steps[f"dedup_{dedup}"][reason]["documents"] == number
        assert steps["decontamination"]["contaminated"]["documents"] == 1
    out = cleaned(f"{place}/{name}/*.zst", place, "globbed", filters=[])
    assert len(rows(out)) == 6


# ------------------------------------------------------------------------------------------------ duplicates


def test_exact_duplicates_are_kept_once(corpus, tmp_path):
    out = cleaned(corpus, tmp_path, filters=[], dedup="exact")
    texts = [row["text"] for row in rows(out)]
    assert len(texts) == len(set(texts)) == manifest_of(out)["summary"]["documents"]["documents"] - 2
    assert manifest_of(out)["steps"][0]["removed"]["duplicate"]["documents"] == 2


def test_near_duplicates_are_kept_once(corpus, tmp_path):
    out = cleaned(corpus, tmp_path, filters=[], dedup="minhash")
    texts = [row["text"] for row in rows(out)]
    for seed in (0, 1, 4, 5, 40, 41, 42, 43, 44):
        assert texts.count(prose(seed)) == 1
    near = [prose(3), prose(3).replace("river", "brook")]
    assert near[0] != near[1]
    assert sum(text in near for text in texts) == 1
    assert texts.count(prose(2)) == 1
    assert manifest_of(out)["steps"][0]["removed"]["near_duplicate"]["documents"] == 3
    assert not (out / "work").exists()


def test_nothing_left_is_not_complete(corpus, tmp_path):
    """It was: exit code 0, a folder without a document, and "complete already" ever after."""
    options = {"gopher_quality": {"min_doc_words": 10_000}}
    for _ in range(2):
        with pytest.raises(
            FoundryError, match=r"no document is left of 18 .*gopher_short_doc: 18\).*filter_options"
        ):
            cleaned(corpus, tmp_path, filters=["gopher_quality"], filter_options=options, dedup="minhash")
    assert not (tmp_path / "out" / "clean.json").exists()
    assert len(rows(tmp_path / "out", "removed/gopher_quality/*.gz")) == 18


def test_a_document_of_which_nothing_is_left_is_removed(tmp_path):
    folder = tmp_path / "corpus"
    write_lines(folder / "a.jsonl", [{"text": "no full stop"}, {"text": "One line that is fine to keep."}])
    options = {"c4_quality": {"min_num_sentences": -1}}
    out = cleaned(folder, tmp_path, filters=["c4_quality"], filter_options=options)
    assert [row["text"] for row in rows(out)] == ["One line that is fine to keep."]
    assert manifest_of(out)["steps"][0]["removed"]["nothing_left"]["documents"] == 1


# ------------------------------------------------------------------------------------------ decontamination


@pytest.mark.parametrize("mode", ["remove", "cut"])
def test_decontamination_and_its_report(tmp_path, capsys, mode):
    folder, quiz = tmp_path / "corpus", tmp_path / "quiz.jsonl"
    dirty = f"{prose(1)} {QUESTION.upper()} {prose(2)}"
    write_lines(folder / "a.jsonl", [{"text": prose(3)}, {"text": dirty, "id": "d"}, {"text": QUESTION}])
    write_lines(quiz, [{"id": "q7", "question": QUESTION, "answer": "Whitby"}, {"question": "Why?"}])
    out = cleaned(
        folder, tmp_path, filters=[], decontaminate=[str(quiz)], decontaminate_mode=mode, dedup="exact"
    )
    report = json.loads((out / "decontamination.json").read_text())
    assert report["tasks"] == {"quiz.jsonl": {"items": 2, "uncheckable": 1, "matched": 1, "documents": 2}}
    assert "quiz.jsonl: 1 of 2 items in 2 documents; 1 items too short" in capsys.readouterr().out
    by_source = {row["source"]: row for row in report["documents"]}
    assert set(by_source) == {"a.jsonl:2", "a.jsonl:3"}
    assert by_source["a.jsonl:2"]["id"] == "d"
    assert by_source["a.jsonl:2"]["action"] == ("removed" if mode == "remove" else "cut")
    (match,) = by_source["a.jsonl:2"]["matches"]
    assert (match["task"], match["item"]) == ("quiz.jsonl", "q7")
    assert match["ngram"] == "in which of these harbours did the painter meet the old sailor before"
    texts = [row["text"] for row in rows(out)]
    assert texts[0] == prose(3)
    assert len(texts) == (1 if mode == "remove" else 2)
    assert not any("harbours" in text.lower() for text in texts)
    step = manifest_of(out)["steps"][0]
    assert step["removed"]["contaminated"]["documents"] == (2 if mode == "remove" else 1)
    assert (step["cut_bytes"] > 400) == (mode == "cut")


def test_other_items_in_the_same_place_are_other_items(tmp_path):
    folder, quiz = tmp_path / "corpus", tmp_path / "quiz.jsonl"
    write_lines(folder / "a.jsonl", [{"text": prose(1)}, {"text": prose(2)}])
    for seed in (1, 2):
        write_lines(quiz, [{"text": prose(seed)}])
        out = cleaned(folder, tmp_path, filters=[], decontaminate=[str(quiz)], overwrite=seed == 2)
        assert [row["text"] for row in rows(out)] == [prose(3 - seed)]
    write_lines(quiz, [{"text": prose(5)}])
    with pytest.raises(FoundryError, match=r"cleaned otherwise \(evaluation_items_sha256: "):
        cleaned(folder, tmp_path, filters=[], decontaminate=[str(quiz)])


# ------------------------------------------------------------------------------------------------ going on


class Killed(BaseException):
    """As little caught as a signal."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What is made without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return contents(cleaned(write_corpus(folder / "corpus"), folder, dedup="minhash"))


@pytest.mark.slow
@pytest.mark.parametrize("survived", [0, 2, 4, 12, 20, 22])
def test_killed_after_any_task_it_goes_on_and_gives_the_same(
    corpus, whole, tmp_path, monkeypatch, capsys, survived
):
    allowed, real = iter(range(survived)), QuietExecutor.mark_rank_as_completed

    def mark(self, rank):
        if next(allowed, None) is None:
            raise Killed
        real(self, rank)

    monkeypatch.setattr(QuietExecutor, "mark_rank_as_completed", mark)
    with pytest.raises(Killed):
        cleaned(corpus, tmp_path, dedup="minhash")
    assert not (tmp_path / "out" / "clean.json").exists()
    marked = []
    monkeypatch.setattr(
        QuietExecutor, "mark_rank_as_completed", lambda self, rank: marked.append(rank) or real(self, rank)
    )
    out = cleaned(corpus, tmp_path, dedup="minhash")
    assert "going on with" in capsys.readouterr().out
    assert contents(out) == whole
    assert len(marked) + survived == 3 + 3 + 14 + 1 + 3, "no task that was complete is done again"


@pytest.mark.slow
def test_killed_outright_it_goes_on_and_gives_the_same(tmp_path, capsys):
    corpus, out, quiz = tmp_path / "corpus", tmp_path / "killed", tmp_path / "quiz.jsonl"
    for name in range(8):
        texts = [f"{prose(1000 * name + i)} {QUESTION if i % 50 == 0 else ''}" for i in range(400)]
        write_lines(corpus / f"{name}.jsonl", [{"text": text} for text in texts])
    write_lines(quiz, [{"text": QUESTION}])
    options = {"filters": [], "decontaminate": [str(quiz)], "dedup": "exact"}
    command = [
        sys.executable, "recipes/prepare_data.py", "clean", f"--input={corpus}", f"--output_dir={out}",
        f"--decontaminate={quiz}", "--dedup=exact", "--workers=2",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL)
    completions = out / "logs" / "filter" / "completions"
    try:
        wait_for(lambda: completions.is_dir() and list(completions.iterdir()), process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        num_complete = len(list(completions.iterdir()))
        assert 0 < num_complete < 8
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended, as they should
            os.killpg(process.pid, signal.SIGKILL)
    capsys.readouterr()
    cleaned(corpus, tmp_path, "killed", **options)
    assert "going on with" in capsys.readouterr().out
    assert manifest_of(out)["summary"]["rows"] == 3200
    assert manifest_of(out)["decontamination"]["quiz.jsonl"]["documents"] == 64
    whole = cleaned(corpus, tmp_path, "whole", **options)
    assert contents(out) == contents(whole)


BEATING = """
import time
from pathlib import Path
from modeling_foundry.data.workers.stages import Stage, run_stage

def beat(data, rank, world_size):
    for number in range(600):
        Path(f"{FOLDER}/beat_{rank}").write_text(str(number))
        time.sleep(0.1)

if __name__ == "__main__":
    run_stage(Stage("beat", [beat], 2), Path(FOLDER, "logs"), workers=2)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    (tmp_path / "beating.py").write_text(f"FOLDER = {str(tmp_path)!r}\n{BEATING}")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "beating.py")], start_new_session=True, stderr=subprocess.DEVNULL
    )
    beats = [tmp_path / f"beat_{rank}" for rank in (0, 1)]
    try:
        wait_for(lambda: all(beat.exists() for beat in beats), process)
        process.kill()
        process.wait()
        time.sleep(1)
        last = [beat.read_text() for beat in beats]
        time.sleep(1)
        assert [beat.read_text() for beat in beats] == last
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended, as they should
            os.killpg(process.pid, signal.SIGKILL)


def note_threads(data, rank, world_size):
    """A step: what the task's process is told of threads."""
    Path(os.environ["NOTES"], str(rank)).write_text(os.environ.get("RAYON_NUM_THREADS", "one a core"))


@pytest.mark.parametrize(("workers", "told"), [(2, str(max(1, num_workers(-1) // 2))), (1, "one a core")])
def test_the_workers_share_the_cores(tmp_path, monkeypatch, workers, told):
    """Each of 64 workers took 64 threads: the tokenizers library starts one a core in every process."""
    monkeypatch.setenv("NOTES", str(tmp_path))
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    run_stage(Stage("note", [note_threads], 2), tmp_path / "logs", workers=workers)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [told] * 2
    assert "RAYON_NUM_THREADS" not in os.environ


@pytest.mark.parametrize(("workers", "threads"), [(1, 64), (3, 21), (64, 1), (200, 1)])
def test_threads_of_a_worker(monkeypatch, workers, threads):
    monkeypatch.setattr(pipeline, "num_workers", lambda _: 64)
    assert pipeline.threads_of_a_worker(workers) == threads


def test_the_log_of_workers_is_in_files(corpus, tmp_path, capfd):
    out = cleaned(corpus, tmp_path, filters=[], workers=2)
    assert "datatrove" not in capfd.readouterr().err
    assert "Processing done" in (out / "logs" / "filter" / "logs" / "task_00001.log").read_text()
    assert contents(out) == contents(cleaned(corpus, tmp_path, "one", filters=[]))


def test_other_settings_are_refused(corpus, tmp_path, capsys):
    out = cleaned(corpus, tmp_path, filters=[])
    cleaned(corpus, tmp_path, filters=[], workers=2)
    assert "complete already" in capsys.readouterr().out
    with pytest.raises(FoundryError, match=r"cleaned otherwise \(dedup: none -> exact\); give another"):
        cleaned(corpus, tmp_path, filters=[], dedup="exact")
    (out / "thesis.tex").write_text("ten years of work")
    cleaned(corpus, tmp_path, filters=[], dedup="exact", overwrite=True)
    assert manifest_of(out)["settings"]["dedup"] == "exact"
    assert (out / "thesis.tex").read_text() == "ten years of work"
    write_lines(corpus / "d.jsonl", [{"text": "one document more"}])
    with pytest.raises(FoundryError, match=r"cleaned otherwise \(input: "):
        cleaned(corpus, tmp_path, filters=[], dedup="exact")


def test_a_changed_file_is_said(corpus, tmp_path):
    out = cleaned(corpus, tmp_path, filters=[])
    with open(out / "documents" / "00000.jsonl.gz", "ab") as file:
        file.write(b" ")
    with pytest.raises(FoundryError, match=r"00000\.jsonl\.gz: missing or changed since"):
        cleaned(corpus, tmp_path, filters=[])


def test_another_unfinished_cleaning_is_not_gone_on_with(corpus, tmp_path, monkeypatch):
    def stop(self, rank):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(QuietExecutor, "mark_rank_as_completed", stop)
        with pytest.raises(Killed):
            cleaned(corpus, tmp_path, filters=[])
    with pytest.raises(FoundryError, match="cleaned otherwise"):
        cleaned(corpus, tmp_path)
    cleaned(corpus, tmp_path, overwrite=True)


def test_a_folder_of_another_is_not_touched(corpus, tmp_path):
    (tmp_path / "out" / "documents").mkdir(parents=True)
    (tmp_path / "out" / "documents" / "thesis.tex").write_text("ten years of work")
    for overwrite in (False, True):
        with pytest.raises(FoundryError, match=r"documents: was not written by clean"):
            cleaned(corpus, tmp_path, overwrite=overwrite)
    assert (tmp_path / "out" / "documents" / "thesis.tex").exists()


def test_a_file_removed_behind_its_back_is_found(corpus, tmp_path, monkeypatch):
    from modeling_foundry.data.cleaning import accounting as cleaning_report

    real = cleaning_report.files_of

    def lose_a_row(folder):
        files = real(folder)
        next(facts for name, facts in files.items() if name.startswith("documents/"))["rows"] -= 1
        return files

    monkeypatch.setattr(cleaning_report, "files_of", lose_a_row)
    with pytest.raises(FoundryError, match="the documents in documents do not add up"):
        cleaned(corpus, tmp_path, filters=[])
    assert not (tmp_path / "out" / "clean.json").exists()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": ["gopher"]}, "filters: gopher: unknown; accepted: gopher_repetition, gopher_quality"),
        (
            {"filters": ["language"]},
            r"filters: language: needs the fastText model lid\.176\.bin; .* is missing",
        ),
        ({"filters": ["unigram_log_prob"]}, r"needs the word frequencies unigram_freq\.csv; .* is missing"),
        (
            {"filter_options": {"gopher_quality": {"min_words": 1}}},
            "filter_options: gopher_quality: min_words: unknown; accepted: min_doc_words",
        ),
        (
            {"filter_options": {"gopher_quality": {"min_doc_words": "many"}}},
            "gopher_quality: min_doc_words: expected a number, found 'many'",
        ),
        ({"filter_options": {"c4_paragraph": {}}}, "filter_options: c4_paragraph: not in filters"),
        ({"filter_options": {"c4_quality": 3}}, "filter_options: c4_quality: expected a mapping"),
        ({"language": "klingon"}, "language: klingon: Language 'klingon' doesn't have a tokenizer assigned"),
        ({"language": "khm"}, "language: khm: Please install `khmernltk`"),
        ({"text_key": "body"}, r"no row of the input is a document \(.*missing_text: 22.*look at text_key"),
        ({"decontaminate": ["quiz.jsonl"]}, r"quiz\.jsonl: decontaminate: cannot read"),
    ],
)
def test_what_cannot_run_is_refused_by_name(corpus, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    with pytest.raises(FoundryError, match=message) as error:
        cleaned(corpus, tmp_path, **options)
    assert "\n" not in str(error.value)


def test_a_filter_whose_model_is_there_still_needs_its_package(corpus, tmp_path, monkeypatch):
    from modeling_foundry.data.cleaning.quality_filters import DOWNLOADED_FILTERS

    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    model = tmp_path / "assets" / "datatrove" / DOWNLOADED_FILTERS["language"].file
    model.parent.mkdir(parents=True)
    model.write_bytes(b"a model")
    with pytest.raises(FoundryError, match=r"lid\.176\.bin\.completed is missing"):
        cleaned(corpus, tmp_path, filters=["language"])
    Path(f"{model}.completed").touch()
    with pytest.raises(
        FoundryError, match=r"filters: language: Please install `fasttext` to use LanguageFilter"
    ):
        cleaned(corpus, tmp_path, filters=["language"])


def test_the_place_of_a_download_is_datatroves(tmp_path, monkeypatch):
    """A fresh cache: datatrove looks at the very paths that are checked, and finds the files put there."""
    from datatrove.pipeline.filters import UnigramLogProbFilter
    from datatrove.utils import lid

    from modeling_foundry.data.cleaning.quality_filters import DOWNLOADED_FILTERS

    def place(name):
        return tmp_path / "assets" / "datatrove" / DOWNLOADED_FILTERS[name].file

    for module in ("datatrove.io", "datatrove.pipeline.filters.unigram_log_probs"):
        monkeypatch.setattr(
            f"{module}.cached_assets_path",
            lambda library_name, namespace, subfolder: (
                tmp_path / "assets" / library_name / namespace / subfolder
            ),
        )
    for name in DOWNLOADED_FILTERS:
        place(name).parent.mkdir(parents=True)
        place(name).write_text("word,count\nthe,3\n")
        Path(f"{place(name)}.completed").touch()
    assert UnigramLogProbFilter().unigram_frequencies == {"the": 1.0}
    found = lid.cached_asset_path_or_download(
        lid.FT176LID.MODEL_URL, namespace="lid", subfolder=lid.FT176LID.MODEL_SUBFOLDER
    )
    assert Path(found) == place("language")


def test_a_missing_package_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "modeling_foundry.data.cleaning.pipeline.NEEDED_PACKAGES", ("datatrove", "spacy", "no-such-package")
    )
    with pytest.raises(
        FoundryError, match=r"package no-such-package is not installed; pip install .*\[clean\]"
    ):
        cleaned(corpus, tmp_path)


def test_input_that_cannot_be_read_is_refused(corpus, tmp_path):
    for pattern in ("nowhere", str(tmp_path / "*.jsonl"), str(corpus / "notes.txt")):
        with pytest.raises(FoundryError, match=r"input: .*\.jsonl"):
            cleaned(pattern, tmp_path)
    with pytest.raises(FoundryError, match="output_dir: .* is inside input"):
        clean(CleanSettings(str(corpus), str(corpus / "out")))
    (corpus / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    with pytest.raises(FoundryError, match=r"torn\.jsonl\.gz: cannot be read to its end"):
        cleaned(corpus, tmp_path, filters=[])
    (corpus / "torn.jsonl.gz").unlink()
    whole = zstandard.compress(
        b'{"text": "a"}\n' * 1000
    )  # zstandard's own reader takes a cut frame for the end
    (corpus / "torn.jsonl.zst").write_bytes(whole[:-8])
    with pytest.raises(FoundryError, match=r"torn\.jsonl\.zst: cannot be read to its end"):
        cleaned(corpus, tmp_path, "cut", filters=[])
    (corpus / "torn.jsonl.zst").unlink()
    (corpus / "no.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(FoundryError, match=r"no\.parquet: cannot be read as Parquet"):
        cleaned(corpus, tmp_path, "other", filters=[])
    table = pyarrow.table({"text": ["a"], "image": pyarrow.array([b"x"], pyarrow.binary())})
    pyarrow.parquet.write_table(table, corpus / "no.parquet")
    with pytest.raises(FoundryError, match=r"no\.parquet: column image is binary, which JSON cannot hold"):
        cleaned(corpus, tmp_path, "third", filters=[])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: expected at least 1"),
        ({"ngram_size": 0}, "ngram_size: expected at least 1"),
        ({"filters": ["c4_quality", "c4_quality"]}, "filters: c4_quality is given twice"),
        ({"eval_text_keys": []}, "eval_text_keys: expected at least one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CleanSettings(**options)


def test_the_command_takes_options_in_one_line(corpus, tmp_path, capsys):
    commands.main(
        [
            "clean", f"--input={corpus}", f"--output_dir={tmp_path / 'out'}", "--filters=gopher_quality",
            "--filter_options={gopher_quality: {min_doc_words: 1}}",
        ]
    )  # fmt: skip
    assert Path(tmp_path / "out" / "clean.json").exists()
    assert "rows read" in capsys.readouterr().out
