"""Contamination is found wherever it stands and however it is spelt; near misses and other text are kept."""

import json
import random

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.cleaning.accounting import contamination_report
from modeling_foundry.data.cleaning.decontamination import (
    EvaluationIndex,
    EvaluationItem,
    NGramFilter,
    cut_passages,
    items_as_lines,
    load_index,
    window_hashes,
    words_of,
    words_with_places,
)
from modeling_foundry.data.cleaning.evaluation_items import read_items
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY

QUESTION = (
    "Which of the following café owners, according to the court’s ruling in 1987, "
    "had to pay twenty-five thousand dollars to the Straße committee?"
)
SYLLABLES = ("ba", "de", "ki", "lo", "mu", "ra", "se", "ti", "vo", "zu")


def other_text(seed, num_words=300):
    """Text of made-up words that no evaluation item holds."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices(SYLLABLES, k=3)) for _ in range(num_words))


def index_of(*texts, size=13):
    return EvaluationIndex([EvaluationItem("task", str(i), text) for i, text in enumerate(texts)], size)


def is_found(text, *items, size=13):
    return bool(index_of(*items, size=size).matches(words_of(text)))


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's mat.", ["the", "cats", "mat"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("ｆｕｌｌ ﬁne", ["full", "fine"]),
        ("zero\u200bwidth so\u00adft", ["zerowidth", "soft"]),
        ("king's king’s kingʼs kings KING＇S", ["kings"] * 5),
        ("'quoted' rock 'n' roll's", ["quoted", "rock", "n", "rolls"]),
        ("fox\ufe0f f\u034fox", ["fox", "fox"]),
        ("snake_case, a—b", ["snake", "case", "a", "b"]),
        ("日本語 text", ["日", "本", "語", "text"]),
        ("हिन्दी", ["हिन्दी"]),
        ("", []),
        ("— … !", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


@given(st.text())
def test_words_have_their_places(text):
    placed = words_with_places(text)
    assert [word for word, _, _ in placed] == words_of(text)
    for word, start, end in placed:
        assert word in words_of(text[start:end])


@given(st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=30), st.integers(1, 15))
def test_windows_are_all_the_runs_of_words(words, size):
    hashes = window_hashes(words, size)
    assert len(hashes) == max(0, len(words) - size + 1)
    for start, value in enumerate(hashes):
        assert window_hashes(words[start : start + size], size) == [value]
    runs = [tuple(words[start : start + size]) for start in range(len(hashes))]
    assert len(set(hashes)) == len(set(runs)), "equal runs have equal hashes, others differ"


# ------------------------------------------------------------------------------------------------ matching


@pytest.mark.parametrize("place", ["start", "middle", "end", "alone"])
def test_contamination_is_found_wherever_it_stands(place):
    before = "" if place in ("start", "alone") else other_text(1)
    after = "" if place in ("end", "alone") else other_text(2)
    assert is_found(f"{before} {QUESTION} {after}", QUESTION)


@pytest.mark.parametrize(
    "variant",
    [
        QUESTION.upper(),
        QUESTION.replace(" ", "\n\n  "),
        QUESTION.replace(",", "").replace("?", " -- !"),
        QUESTION.replace("’", "'").replace("-", " "),
        QUESTION.replace("é", "e\u0301").replace("ß", "SS"),
        QUESTION.replace("pay", "p\u00aday").replace("court", "\u200bcourt"),
        QUESTION.replace(" ", "\u00a0").replace("1987", "１９８７"),
        "".join(f"*{word}* " for word in QUESTION.split()),
    ],
)
def test_spelling_variants_are_found(variant):
    assert is_found(f"{other_text(3)} {variant} {other_text(4)}", QUESTION)


@given(st.integers(13, 60), st.data())
def test_thirteen_words_are_found_and_twelve_are_not(num_words, data):
    item = [f"w{i}" for i in range(num_words)]
    start = data.draw(st.integers(0, num_words - 13))
    for size, found in ((13, True), (12, False)):
        held = [*other_text(5, 40).split(), *item[start : start + size], *other_text(6, 40).split()]
        assert is_found(" ".join(held), " ".join(item)) is found


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_text_without_a_common_word_is_kept(seed, other):
    item = " ".join(f"x{word}" for word in other_text(seed, 60).split())
    assert not is_found(other_text(other, 200), item)


def test_real_prose_does_not_match_other_prose():
    import pydoc_data.topics

    texts = sorted(pydoc_data.topics.topics.items())
    assert len(texts) > 50
    items = [text for name, text in texts if name.startswith("binary")]
    assert items
    index = index_of(*items)
    found = {name for name, text in texts if index.matches(words_of(text))}
    assert {name for name, _ in texts if name.startswith("binary")} <= found
    words = {name: " ".join(words_of(text)) for name, text in texts}
    for name in found:  # each hit is a real run of thirteen words of both texts
        for item, ngram in index.matches(words_of(dict(texts)[name])).items():
            assert len(ngram.split()) == 13
            assert ngram in words[name]
            assert ngram in " ".join(words_of(items[item]))


def test_short_items_are_matched_whole_or_counted():
    eight = "one two three four five six seven eight"
    index = index_of(eight, "one two three four five six seven", "nine " * 12)
    assert index.uncheckable == [1]
    assert index.matches(words_of(f"{other_text(7)} One, two; three: four five six seven (eight)! more")) == {
        0: eight
    }
    assert not index.matches(words_of("zero one two three four five six seven nine"))
    assert index.matches(["nine"] * 12)
    assert not index.matches(["nine"] * 11)


def test_every_item_that_is_held_is_named():
    shared = " ".join(f"s{i}" for i in range(13))
    index = index_of(f"a {shared} b", f"c {shared} d", "e " * 20)
    assert set(index.matches(words_of(f"x {shared} y"))) == {0, 1}


# ------------------------------------------------------------------------------------------------ filter


@pytest.fixture
def items_path(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(items_as_lines([EvaluationItem("quiz", "q1", QUESTION)]))
    return str(path)


def test_a_removed_document_says_why(items_path):
    step = NGramFilter(items_path, 13, "remove", None)
    kept, dirty = Document(other_text(8), "a"), Document(f"{other_text(9)} {QUESTION.upper()}", "b")
    assert [document.id for document in step.run([kept, dirty])] == ["a"]
    note = dirty.metadata["contamination"]
    assert note["matches"][0]["task"] == "quiz"
    assert note["matches"][0]["item"] == "q1"
    assert note["matches"][0]["ngram"] == " ".join(words_of(QUESTION)[:13])
    assert step.stats["dropped_contaminated"].total == 1


def test_cut_takes_the_passage_and_its_margins(items_path):
    before, after = other_text(10), other_text(11)
    document = Document(f"{before} {QUESTION} {after}", "a")
    step = NGramFilter(items_path, 13, "cut", None)
    assert list(step.run([document])) == [document]
    pieces = document.text.split("\n\n")
    assert len(pieces) == 2
    assert before.startswith(pieces[0])
    assert after.endswith(pieces[1])
    assert 195 <= len(before) - len(pieces[0]) <= 205
    assert 195 <= len(after) - len(pieces[1]) <= 205
    assert not load_index(items_path, 13).matches(words_of(document.text))


def test_cut_removes_what_is_mostly_contamination(items_path):
    step = NGramFilter(items_path, 13, "cut", None)
    short = Document(f"{other_text(12, 30)} {QUESTION}", "short")
    torn = Document(f" {QUESTION} ".join(other_text(20 + i, 120) for i in range(12)), "torn")
    assert list(step.run([short, torn])) == []
    assert short.text.endswith(QUESTION), "what is removed is recorded as it was"


@given(st.lists(st.booleans(), min_size=1, max_size=6), st.integers(0, 1000))
def test_cutting_leaves_no_evaluation_ngram_and_loses_no_character(order, seed):
    text = " ".join(QUESTION if dirty else other_text(seed + i, 90) for i, dirty in enumerate(order))
    index = index_of(QUESTION)
    pieces, passages = cut_passages(text, index)
    for piece in pieces:
        assert not index.matches(words_of(piece))
        assert piece in text
    kept, cut = "".join("".join(pieces).split()), "".join("".join(passages).split())
    assert len(kept) + len(cut) == len("".join(text.split()))
    assert bool(passages) == any(order)


def test_the_report_adds_up():
    index = EvaluationIndex(
        [
            EvaluationItem("quiz", "1", QUESTION),
            EvaluationItem("quiz", "2", "too short"),
            EvaluationItem("exam", "1", other_text(13, 20)),
        ],
        13,
    )
    note = {"num_items": 1, "items": [0], "matches": [{"task": "quiz", "item": "1", "ngram": "…"}]}
    row = {"id": "d1", "metadata": {"contamination": note, "clean_source": "a.jsonl:3"}}
    report = contamination_report(index, [row, row], [])
    assert report["tasks"] == {
        "quiz": {"items": 2, "uncheckable": 1, "matched": 1, "documents": 2},
        "exam": {"items": 1, "uncheckable": 0, "matched": 0, "documents": 0},
    }
    assert report["documents"][0] == {
        "action": "removed",
        "source": "a.jsonl:3",
        "id": "d1",
        "num_items": 1,
        "matches": note["matches"],
    }


# ------------------------------------------------------------------------------------------------ items


def test_items_of_a_file(tmp_path):
    path = tmp_path / "quiz.jsonl"
    rows = [{"id": 7, "question": "Q", "answer": ["A", "B"]}, {"text": "T", "other": 1}]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    items = read_items([str(path)], ["text", "question", "answer"], "nowhere")
    assert items == [EvaluationItem("quiz.jsonl", "7", "Q\nA\nB"), EvaluationItem("quiz.jsonl", "2", "T")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": ', r"quiz\.jsonl:2: not a JSON object"),
        ("[1]", r"quiz\.jsonl:1: expected a JSON object, found list"),
        ('{"prompt": "a"}', r"quiz\.jsonl:1: eval_text_keys: expected text under one of text; found prompt"),
        ("", r"quiz\.jsonl: decontaminate: holds no evaluation item"),
    ],
)
def test_a_faulty_evaluation_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "quiz.jsonl"
    path.write_text(content)
    with pytest.raises(FoundryError, match=message) as error:
        read_items([str(path)], ["text"], "nowhere")
    assert "\n" not in str(error.value)
    with pytest.raises(FoundryError, match=r"gone\.jsonl: decontaminate: cannot read"):
        read_items([str(tmp_path / "gone.jsonl")], ["text"], "nowhere")


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    """A data folder as prepare_data.py leaves it, as far as the tasks read it."""
    summaries = [f"Return the {word} of it." for word in ("first", "second", "third", "fourth", "fifth")]
    samples = [
        {
            "messages": [
                {"role": "user", "content": f"Summarize in one sentence.\ndef f{i}(a, b, c, d, e):"},
                {"role": "assistant", "content": summary},
            ],
            "module": "m",
            "function": f"f{i}",
        }
        for i, summary in enumerate(summaries)
    ]
    (tmp_path / "sft_heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"module": "m", "text": QUESTION}) + "\n")
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    return summaries


def test_items_of_our_lm_eval_tasks(held_out):
    tasks = ["stdlib_bits_per_byte", "stdlib_summary_choice", "stdlib_summary_generate"]
    items = read_items(tasks, ["text"], str(REPOSITORY / "eval_tasks"))
    assert [item.task for item in items] == [tasks[0]] + [tasks[1]] * 5 + [tasks[2]] * 5
    assert items[0].text == QUESTION
    for place, summary in enumerate(held_out):
        for item in (items[1 + place], items[6 + place]):  # the choice's index stands for its text
            assert item.item == str(place)
            assert item.text == f"Summarize in one sentence.\ndef f{place}(a, b, c, d, e):\n{summary}"


def test_a_task_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    folder = str(REPOSITORY / "eval_tasks")
    with pytest.raises(FoundryError, match="decontaminate: arc: neither a file ending in .* nor a task of"):
        read_items(["arc"], ["text"], folder)
    with pytest.raises(FoundryError, match="task_dir: expected a folder of lm-eval task files"):
        read_items(["arc"], ["text"], str(tmp_path / "nowhere"))
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FoundryError, match=r"stdlib_bits_per_byte: lm-eval cannot load it \(.*no such file"):
        read_items(["stdlib_bits_per_byte"], ["text"], folder)


def test_two_files_of_one_name_are_two_tasks(tmp_path):
    for folder in ("arc", "boolq"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(json.dumps({"text": f"{folder} asks"}) + "\n")
    paths = [str(tmp_path / folder / "test.jsonl") for folder in ("arc", "boolq")]
    assert [item.task for item in read_items(paths, ["text"], "eval_tasks")] == paths
    assert [item.task for item in read_items(paths[:1], ["text"], "eval_tasks")] == ["test.jsonl"]
