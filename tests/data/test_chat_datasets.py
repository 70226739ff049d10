"""Small files of the same schemas: what is sound is converted whole, what is malformed is counted by reason."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.chat.datasets import DATASETS
from modeling_foundry.data.chat.message_trees import LeftOut
from modeling_foundry.data.chat.pipeline import prepare_chat
from modeling_foundry.data.chat.selection import Entry, select
from modeling_foundry.data.chat.settings import ChatSettings
from modeling_foundry.data.samples import conversations as chat_rows
from modeling_foundry.data.samples.conversations import MalformedRowError, parse_transcript
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY


def said(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


def pair(prompt, chosen, rejected):
    return {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


SYSTEM = {"role": "system", "content": "Be brief."}
# Dataset -> a row as it is on the Hub, and its sample.
ROWS = {
    "alpaca": (
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is an instruction"},
        {"messages": said("Add.\n\n1 and 2", "3")},
    ),
    "alpaca_cleaned": (
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
        {"messages": said("Say hello.", "Hello.")},
    ),
    "dolly": (
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada.", "category": "closed_qa"},
        {"messages": said("Who?\n\nAda wrote it.", "Ada.")},
    ),
    "ultrachat": (
        {"prompt": "Hi", "prompt_id": "a1", "messages": said("Hi", "Hello.", "Bye", "So long.")},
        {"messages": said("Hi", "Hello.", "Bye", "So long.")},
    ),
    "slimorca": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief.", "weight": None},
                {"from": "human", "value": "Hi", "weight": 0.0},
                {"from": "gpt", "value": "Hello.", "weight": 1.0},
            ]
        },
        {"messages": [SYSTEM, *said("Hi", "Hello.")]},
    ),
    "capybara": (
        {
            "source": "s",
            "conversation": [{"input": "1?", "output": "One."}, {"input": "2?", "output": "Two."}],
        },
        {"messages": said("1?", "One.", "2?", "Two.")},
    ),
    "capybara_dpo": (
        {
            "chosen": said("1?", "One.", "2?", "Two."),
            "rejected": said("1?", "One.", "2?", "No."),
            "rating_chosen": 5,
        },
        pair(said("1?", "One.", "2?"), "Two.", "No."),
    ),
    "ultrafeedback": (
        {
            "prompt": "Hi",
            "chosen": said("Hi", "Hello."),
            "rejected": said("Hi", "What?"),
            "score_chosen": 8.0,
        },
        pair(said("Hi"), "Hello.", "What?"),
    ),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant: So.\n\nLike this.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant: No.",
        },
        pair(said("Hi", "Hello.", "How?"), "So.\n\nLike this.", "No."),
    ),
    "orca_dpo": (
        {"system": "Be brief.", "question": "Hi", "chosen": "Hello.", "rejected": "What?"},
        pair([SYSTEM, *said("Hi")], "Hello.", "What?"),
    ),
}


def outcomes(name, rows, language=None):
    return list(DATASETS[name].samples(enumerate(rows, start=1), language))


def reason_of(name, row):
    ((_, outcome),) = outcomes(name, [row])
    assert isinstance(outcome, MalformedRowError), outcome
    return str(outcome)


def test_the_page_lists_every_dataset_with_its_licence():
    page = (REPOSITORY / "docs" / "data.md").read_text()
    for name, dataset in DATASETS.items():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert dataset.repository in line
        assert dataset.licence in line
        assert ("preference" in line) == (dataset.kind == "preference")


def test_every_dataset_has_a_row_here():
    assert {*ROWS, "oasst1"} == set(DATASETS)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_becomes_its_sample(name):
    row, sample = ROWS[name]
    assert outcomes(name, [row]) == [(1, sample)]


@pytest.mark.parametrize("name", ROWS)
def test_each_needed_key_is_missed_and_typed(name):
    row, _ = ROWS[name]
    optional = {"input", "context", "system", "source", "text", "category", "prompt_id", "prompt"}
    needed = [key for key in row if key not in optional and "rating" not in key and "score" not in key]
    assert needed
    for key in needed:
        assert reason_of(name, {**row, key: None}) == f"missing key: {key}"
        assert reason_of(name, {k: v for k, v in row.items() if k != key}) == f"missing key: {key}"
        assert reason_of(name, {**row, key: 5}).startswith("wrong type:")


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "a", "output": " \n"}, "empty text: output"),
        ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}, "wrong type: input is a list, not text"),
        ("alpaca", {"instruction": "a", "output": "\ud800"}, "wrong type: output holds half of a surrogate pair"),
        ("ultrachat", {"messages": said("a", "b", "c")}, "no assistant turn last"),
        ("ultrachat", {"messages": []}, "no assistant turn last"),
        ("ultrachat", {"messages": [SYSTEM]}, "no assistant turn last"),
        ("ultrachat", {"messages": said("b", "a", first="assistant")}, "roles not alternating: turn 1 is assistant"),
        ("ultrachat", {"messages": [*said("a"), *said("b", "c")]}, "roles not alternating: turn 2 is user"),
        ("ultrachat", {"messages": [*said("a"), SYSTEM, *said("c")]}, "roles not alternating: turn 2 is system"),
        ("ultrachat", {"messages": [{"role": "tool", "content": "a"}]}, "unknown role: tool"),
        ("ultrachat", {"messages": ["a", "b"]}, "wrong type: messages is not a list of turns"),
        ("ultrachat", {"messages": [{"role": "user"}]}, "missing key: content"),
        ("ultrafeedback", {"chosen": said("a", "b"), "rejected": said("a", "b")}, "chosen equals rejected"),
        (
            "ultrafeedback",
            {"chosen": said("a", "b"), "rejected": said("x", "c")},
            "chosen and rejected differ before the last turn",
        ),
        ("hh_rlhf", {"chosen": "Hello", "rejected": "x"}, "not a transcript: "),
        ("hh_rlhf", {"chosen": "x\n\nHuman: a\n\nAssistant: b", "rejected": "x"}, "not a transcript: "),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "x"}, "empty text: turn 2, Assistant"),
        ("hh_rlhf", {"chosen": "\n\nHuman: a\n\nHuman: b", "rejected": "x"}, "roles not alternating"),
    ],
)  # fmt: skip
def test_a_malformed_row_says_why(name, row, reason):
    assert reason_of(name, row).startswith(reason)


ANYTHING = st.recursive(
    st.sampled_from([None, True, 0, 1.5, "", " \n", "\ud800", "user", "assistant", "system", "tool", "Hi"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "input", "output"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places_of(value):
    """Every place inside a row, as the keys that lead there."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *rest) for key, part in inner for rest in places_of(part))]


def changed(value, place, new):
    """The row with something else at a place; without it where ``new`` is ``...``; twice for ``"twice"``."""
    if not place:
        return new
    copy = value.copy()
    if len(place) == 1 and new is ...:
        del copy[place[0]]
    elif len(place) == 1 and new == "twice" and isinstance(copy, list):
        copy.insert(place[0], copy[place[0]])
    else:
        copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


def assert_sample(sample):
    """What TRL takes: text in every content, user and assistant in turn, an answer last."""
    whole = sample.get("messages") or sample["prompt"] + sample["chosen"]
    spoken = whole[1:] if whole[0]["role"] == "system" else whole
    assert [message["role"] for message in spoken] == ["user", "assistant"] * (len(spoken) // 2)
    assert spoken
    answers = sample.get("rejected", whole[-1:])
    assert [message["role"] for message in answers] == ["assistant"]
    for message in [*whole, *answers]:
        assert message.keys() == {"role", "content"}
        assert message["content"].strip()
        json.dumps(sample, ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_changed_anywhere_is_a_sample_or_says_why_not(name):
    row, _ = ROWS[name]
    places = [place for place in places_of(row) if place]

    @given(st.data())
    def check(data):
        changed_row = row
        for _ in range(data.draw(st.integers(1, 2))):
            place = data.draw(st.sampled_from(places))
            new = data.draw(ANYTHING | st.sampled_from([..., "twice"]))
            try:
                changed_row = changed(changed_row, place, new)
            except (KeyError, IndexError, TypeError, AttributeError):
                continue  # the first change took this place away
        ((number, outcome),) = outcomes(name, [changed_row])
        assert number == 1
        if not isinstance(outcome, MalformedRowError):
            assert_sample(outcome)

    check()


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*"mprtlkdx"]), ANYTHING), max_size=4))
def test_a_tree_changed_anywhere_ends_and_accounts_for_every_message(changes):
    """Each message is in a thread, left out, malformed, or beside a reply that ranks better."""
    keys = {
        "m": "message_id",
        "p": "parent_id",
        "r": "role",
        "t": "text",
        "l": "lang",
        "k": "rank",
        "d": "deleted",
    }
    rows = [dict(row) for row in TREE]
    for place, key, value in changes:
        rows[place][keys.get(key, "extra")] = value
    for number, outcome in outcomes("oasst1", rows):
        assert 1 <= number <= len(rows)
        if isinstance(outcome, dict):
            assert_sample(outcome)


@pytest.mark.parametrize("name", ["ultrafeedback", "orca_dpo", "hh_rlhf", "capybara_dpo"])
def test_answers_that_differ_in_white_space_are_no_pair(name):
    row = json.loads(json.dumps(ROWS[name][0]))
    if isinstance(row["chosen"], list):
        row["rejected"] = [
            *row["chosen"][:-1],
            {**row["chosen"][-1], "content": row["chosen"][-1]["content"] + " \n"},
        ]
    else:
        row["rejected"] = row["chosen"] + " \n"
    ((_, outcome),) = DATASETS[name].samples([(1, row)])
    assert str(outcome) == "chosen equals rejected"


def test_a_dialogue_that_is_the_beginning_of_the_other_is_no_pair():
    start = "\n\nHuman: a\n\nAssistant: b"
    row = {"chosen": start, "rejected": f"{start}\n\nHuman: c\n\nAssistant: d"}
    assert reason_of("hh_rlhf", row) == "chosen and rejected differ before the last turn"


def test_blank_system_messages_are_none():
    assert "system" not in str(outcomes("orca_dpo", [{**ROWS["orca_dpo"][0], "system": ""}]))
    row = {"conversations": [{"from": "system", "value": ""}, *ROWS["slimorca"][0]["conversations"][1:]]}
    assert outcomes("slimorca", [row]) == [(1, {"messages": said("Hi", "Hello.")})]


CONTENT = st.text(st.characters(exclude_categories=["Cs"])).map(str.strip)
CONTENTS = st.lists(
    CONTENT.filter(lambda text: text and not chat_rows.TURN.search(f"\n\n{text}")), min_size=1, max_size=4
).filter(lambda texts: len(texts) % 2 == 0)


def transcript(messages):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)


@given(CONTENTS)
def test_a_transcript_gives_back_every_turn(contents):
    assert parse_transcript(transcript(said(*contents))) == said(*contents)


@given(CONTENTS, CONTENT, CONTENT)
def test_a_pair_of_transcripts_gives_back_prompt_and_answers(contents, one, other):
    if not one or not other or chat_rows.TURN.search(f"\n\n{one}\n\n{other}"):
        one, other = "yes", "no"
    prompt = said(*contents, "and then?")
    row = {
        "chosen": transcript([*prompt, {"role": "assistant", "content": one}]),
        "rejected": transcript([*prompt, {"role": "assistant", "content": other}]),
    }
    ((_, outcome),) = outcomes("hh_rlhf", [row])
    if one == other:
        assert str(outcome) == "chosen equals rejected"
    else:
        assert outcome == pair(prompt, one, other)


PIECES = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["\n\nHuman: ", "\n\nAssistant: ", "\n\n"]
)


@given(st.lists(PIECES, max_size=8).map("".join))
def test_any_transcript_is_a_conversation_or_says_why_not(text):
    try:
        messages = parse_transcript(text)
    except MalformedRowError:
        return
    assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
    assert all(message["content"].strip() for message in messages)


# ---------------------------------------------------------------------------------------- message trees


def message(identity, parent, text, rank=None, **more):
    depth_role = more.pop("role", "assistant" if identity.startswith("a") else "prompter")
    row = {"message_id": identity, "parent_id": parent, "role": depth_role, "text": text, "rank": rank}
    return {**row, "lang": "en", "deleted": False, **more}


TREE = [
    message("a2", "q1", "Worse.", rank=1),
    message("q1", None, "Why?"),
    message("a1", "q1", "Because.", rank=0),
    message("a3", "q1", "Unranked."),
    message("q2", "a1", "Really?"),
    message("a4", "q2", "Deleted.", rank=0, deleted=True),
    message("a5", "q2", "Yes.", rank=1),
    message("q3", "a5", "And then, without an answer?"),
    message("q4", None, "Wozu?", lang="de"),
    message("a6", "q4", "Darum."),
]


def test_the_best_ranked_replies_are_followed():
    found = outcomes("oasst1", TREE)
    assert [(number, type(outcome)) for number, outcome in found] == [(6, LeftOut), (2, dict), (9, dict)]
    assert found[1][1] == {"messages": said("Why?", "Because.", "Really?", "Yes.")}
    assert found[2][1] == {"messages": said("Wozu?", "Darum.")}


def test_one_language_can_be_asked_for():
    found = dict(outcomes("oasst1", TREE, language="de"))
    assert found[2] == LeftOut("thread in another language")
    assert found[9] == {"messages": said("Wozu?", "Darum.")}


def test_the_order_of_the_file_decides_only_between_equals():
    assert {str(outcome) for _, outcome in outcomes("oasst1", TREE)} == {
        str(outcome) for _, outcome in outcomes("oasst1", TREE[::-1])
    }


def test_what_is_wrong_in_a_tree_is_said_and_the_rest_used():
    rows = [
        *TREE[:3],
        message("a1", "q1", "The same id."),
        message("a7", "lost", "Its parent is not here."),
        message("q8", "a8", "In a circle."),
        message("a8", "q8", "In a circle too."),
        message("q9", None, "Nobody answers."),
        message("q10", None, ""),
        message("a10", "q10", "What it answers is malformed."),
        message("a11", "q1", "Its role is.", role="moderator"),
        message("a12", "q1", "Its rank is.", rank="best"),
        {"parent_id": None, "role": "prompter", "text": "No id."},
        message("q13", None, "Gone.", deleted=True),
        message("a13", "q13", "Gone with it."),
        message("q14", "q14", "Its own parent."),
    ]
    found = outcomes("oasst1", rows)
    assert {number: str(outcome) for number, outcome in found if number != 2} == {
        4: "message id twice: a1",
        5: "parent not in the file: lost",
        6: "parents in a circle: q8",
        7: "parents in a circle: q8",
        8: "no assistant turn last",
        9: "empty text: text",
        10: "LeftOut(reason='below a message that is not used')",
        11: "unknown role: moderator",
        12: "wrong type: rank is text, not a number",
        13: "missing key: message_id",
        14: "LeftOut(reason='deleted')",
        15: "LeftOut(reason='below a message that is not used')",
        16: "parents in a circle: q14",
    }
    assert dict(found)[2] == {"messages": said("Why?", "Because.")}
    assert Counter(number for number, _ in found).most_common(1)[0][1] == 1, "a row has one outcome"


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_reply_without_a_rank_comes_after_those_with_one(nothing):
    rows = [
        message("q", None, "Why?"),
        message("a1", "q", "Not ranked.", rank=nothing),
        message("a2", "q", "Best.", rank=0.0),
        message("a3", "q", "Second.", rank=1.0),
    ]
    assert outcomes("oasst1", rows) == [(1, {"messages": said("Why?", "Best.")})]


@pytest.mark.parametrize("above", ["circle", "lost"])
def test_a_long_line_of_parents_takes_no_longer_for_each(above):
    names = ["q0", *(f"{'qa'[place % 2]}{place}" for place in range(1, 20_000))]
    parents = [names[-1] if above == "circle" else "elsewhere", *names[:-1]]
    rows = [message(name, parent, "x") for name, parent in zip(names, parents, strict=True)][::-1]
    started = time.process_time()
    found = outcomes("oasst1", rows)
    assert time.process_time() - started < 10
    assert len({str(outcome) for _, outcome in found}) == 1
    assert len(found) == len(rows)


@given(st.lists(st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9), st.booleans()), max_size=12))
def test_any_tree_ends(edges):
    rows = [
        message(
            f"{'a' if i % 2 else 'q'}{i}",
            None if p is None else f"{'a' if p % 2 else 'q'}{p}",
            "x",
            deleted=d,
        )
        for i, p, d in edges
    ]
    numbers = [number for number, _ in outcomes("oasst1", rows)]
    assert len(numbers) == len(set(numbers)) <= len(rows)


# ------------------------------------------------------------------------------------------- selection


@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=60),
    st.integers(0, 3),
    st.sampled_from([0.01, 0.1, 0.5]),
    st.none() | st.integers(1, 50),
)
def test_no_opening_is_on_both_sides(openings, seed, fraction, max_samples):
    entries = [Entry(i, 1, bytes([opening])) for i, opening in enumerate(openings)]
    try:
        train, held_out = select(entries, seed, max_samples, fraction)
    except FoundryError:
        assert len(set(openings)) == 1 or max_samples is not None
        return
    assert train
    assert held_out
    assert len(train) + len(held_out) == min(len(entries), max_samples or len(entries))
    assert not {entry.opening for entry in train} & {entry.opening for entry in held_out}
    assert select(entries, seed, max_samples, fraction) == (train, held_out)


def test_the_share_is_kept_and_another_seed_is_another_order():
    entries = [Entry(i, 1, b"%d" % i) for i in range(1000)]
    train, held_out = select(entries, 0, None, 0.05)
    assert (len(train), len(held_out)) == (950, 50)
    assert select(entries, 1, None, 0.05)[0] != train
    assert select(entries, 0, None, 0)[1] == []
    smaller = {entry.opening for entry in select(entries, 0, 500, 0.05)[1]}
    assert len(smaller & {entry.opening for entry in held_out}) > 20


# -------------------------------------------------------------------------------------------- command


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of a test's files goes with the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def many(name, number):
    """Rows of one schema with different questions and answers."""
    text = json.dumps(TREE[1:3] if name == "oasst1" else ROWS[name][0])
    words = ["Add.", "Say hello.", "Who?", "Hi", "1?", "Why?", '"q1"', '"a1"']
    for i in range(number):
        row = text
        for word in words:
            row = row.replace(word, f'{word[:-1]} {i}"' if word.endswith('"') else f"{i}: {word}")
        yield from json.loads(row) if name == "oasst1" else [json.loads(row)]


def write(path, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def read(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", [*ROWS, "oasst1"])
def test_a_local_file_of_each_schema(name, tmp_path, capsys):
    file = write(tmp_path / "rows.jsonl", many(name, 40))
    folder = prepare_chat(ChatSettings(name, str(tmp_path / "out"), file, validation_fraction=0.1))
    prefix = "sft" if DATASETS[name].kind == "sft" else "dpo"
    train, held_out = (read(folder, f"{prefix}_{split}.jsonl") for split in ("train", "heldout"))
    assert (len(train), len(held_out)) == (36, 4)
    keys = {"messages"} if prefix == "sft" else {"prompt", "chosen", "rejected"}
    assert all(set(row) == keys for row in train + held_out)
    manifest = json.loads((folder / "chat.json").read_text())
    assert manifest["source"] == {
        "file": "rows.jsonl",
        "kind": DATASETS[name].kind,
        "licence": DATASETS[name].licence,
    }
    assert manifest["malformed"] == {}
    assert DATASETS[name].licence in capsys.readouterr().out


SHAPES = [".json", ".lines.json", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".parquet"]


@pytest.mark.parametrize("name", DATASETS)
def test_the_name_on_the_hub_will_do(name):
    settings = ChatSettings(DATASETS[name].repository, "out")
    assert settings == ChatSettings(name, "out")


@pytest.mark.parametrize("ending", SHAPES)
def test_the_same_rows_in_every_kind_of_file(ending, tmp_path):
    from datasets import Dataset

    rows = list(many("ultrachat", 30))
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif ending == ".json":
        path.write_text("\ufeff\n" + json.dumps(rows, indent=1))
    elif ending in (".jsonl.zst", ".jsonl.xz"):
        with fsspec.open(path, "wt", compression="infer") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        write(path, rows)
    plain = prepare_chat(ChatSettings("ultrachat", str(tmp_path / "a"), write(tmp_path / "rows.jsonl", rows)))
    other = prepare_chat(ChatSettings("ultrachat", str(tmp_path / "b"), str(path)))
    for name in ("sft_train.jsonl", "sft_heldout.jsonl"):
        assert (plain / name).read_bytes() == (other / name).read_bytes()


def test_what_is_malformed_or_twice_is_counted(tmp_path, capsys):
    rows = [*many("alpaca", 50), {"instruction": "x", "output": ""}, {"instruction": 7, "output": "y"}]
    rows[10] = {"instruction": "z"}
    file = write(tmp_path / "rows.jsonl", [*rows, *rows[:3]])
    settings = {"file": file, "max_samples": 20, "system_prompt": "Be brief.", "max_malformed_fraction": 0.06}
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), **settings))
    manifest = json.loads((folder / "chat.json").read_text())
    assert manifest["rows"] == 55
    assert manifest["malformed"] == {"missing key": 1, "empty text": 1, "wrong type": 1}
    assert manifest["first_malformed"] == {"row": 11, "reason": "missing key: output"}
    assert (manifest["duplicates"], manifest["different_samples"]) == (3, 49)
    samples = read(folder, "sft_train.jsonl") + read(folder, "sft_heldout.jsonl")
    assert len(samples) == 20
    assert all(sample["messages"][0] == SYSTEM for sample in samples)
    assert "3 exact duplicates, 29 beyond max_samples" in capsys.readouterr().out.replace("\n", " ")


def test_too_many_malformed_rows_stop(tmp_path):
    rows = [*many("orca_dpo", 3), {"question": "a", "chosen": "b", "rejected": "b"}]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(FoundryError) as raised:
        prepare_chat(ChatSettings("orca_dpo", str(tmp_path / "out"), file))
    assert str(raised.value) == (
        f"{file}: 1 of 4 rows are malformed (1 chosen equals rejected), first row 4: chosen equals rejected; "
        "expected at most 5.0% (--max_malformed_fraction)"
    )
    assert not (tmp_path / "out").exists()


def test_prepared_once_is_prepared(tmp_path, capsys):
    file = write(tmp_path / "rows.jsonl", many("dolly", 30))
    settings = ChatSettings("dolly", str(tmp_path / "out"), file)
    folder = prepare_chat(settings)
    record = (folder / "chat.json").read_bytes()
    capsys.readouterr()
    prepare_chat(settings)
    assert capsys.readouterr().out == f"chat: complete already, {folder} (nothing to do)\n"
    os.rename(file, tmp_path / "moved.jsonl")
    prepare_chat(ChatSettings("dolly", str(folder), str(tmp_path / "moved.jsonl")))
    assert (folder / "chat.json").read_bytes() == record
    other = {"file": str(tmp_path / "moved.jsonl"), "seed": 1}
    with pytest.raises(FoundryError, match=r"prepared otherwise \(seed: 0 -> 1\); give another"):
        prepare_chat(ChatSettings("dolly", str(folder), **other))
    prepare_chat(ChatSettings("dolly", str(folder), overwrite=True, **other))
    assert json.loads((folder / "chat.json").read_text())["settings"]["seed"] == 1
    with open(folder / "sft_train.jsonl", "a") as train:
        train.write(" ")
    with pytest.raises(FoundryError, match=r"sft_train\.jsonl: missing or not what chat\.json recorded"):
        prepare_chat(ChatSettings("dolly", str(folder), **other))
    (folder / "chat.json").write_text("[]")
    with pytest.raises(FoundryError, match=r"chat\.json: not a record of `chat`"):
        prepare_chat(ChatSettings("dolly", str(folder), **other))


class Killed(BaseException):
    """As little caught as a signal."""


def test_killed_at_any_rename_it_is_made_whole_by_the_next_run(tmp_path, monkeypatch):
    file = write(tmp_path / "rows.jsonl", many("dolly", 30))
    whole = json.loads(
        (prepare_chat(ChatSettings("dolly", str(tmp_path / "w"), file)) / "chat.json").read_text()
    )
    real = os.replace
    for survived in range(4):
        folder, allowed = tmp_path / f"killed_{survived}", iter(range(survived))

        def replace(source, target, allowed=allowed):
            if str(tmp_path / "killed") in str(target) and next(allowed, None) is None:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            prepare_chat(ChatSettings("dolly", str(folder), file))
        assert not (folder / "chat.json").exists()
        monkeypatch.setattr(os, "replace", real)
        prepare_chat(ChatSettings("dolly", str(folder), file))
        assert json.loads((folder / "chat.json").read_text()) == whole
        assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "w").iterdir()}


def test_files_of_others_are_not_replaced(tmp_path):
    file = write(tmp_path / "rows.jsonl", many("dolly", 30))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "sft_train.jsonl").write_text("mine")
    with pytest.raises(FoundryError, match=r"sft_train\.jsonl: is there already, without chat\.json"):
        prepare_chat(ChatSettings("dolly", str(folder), file))
    (folder / "data.json").write_text("{}")
    with pytest.raises(FoundryError, match="holds what `prepare` made"):
        prepare_chat(ChatSettings("dolly", str(folder), file, overwrite=True))
    assert (folder / "sft_train.jsonl").read_text() == "mine"


def test_a_failed_overwrite_keeps_what_was_there(tmp_path):
    folder = prepare_chat(
        ChatSettings("dolly", str(tmp_path / "out"), write(tmp_path / "rows.jsonl", many("dolly", 30)))
    )
    before = (folder / "sft_train.jsonl").read_bytes()
    bad = write(tmp_path / "bad.jsonl", [{"instruction": "a"}])
    with pytest.raises(FoundryError, match="malformed"):
        prepare_chat(ChatSettings("dolly", str(folder), bad, overwrite=True))
    assert (folder / "sft_train.jsonl").read_bytes() == before
    assert (folder / "chat.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "a,b", "expected a .json, .jsonl or .parquet file"),
        ("rows.jsonl", "", "empty; expected rows"),
        (
            "rows.jsonl",
            '{"instruction": "a"\n',
            r"1 of 1 rows are malformed \(1 not JSON\), first row 1: not JSON: ",
        ),
        ("rows.parquet", "PAR1", "not readable as parquet"),
        ("rows.json", "[]", r"no sample in 0 rows \(it is empty\)"),
        ("rows.json", '[{"instruction": "a"}', "not JSON"),
        ("rows.json", "[" * 100_000, "not JSON"),
        ("rows.jsonl.gz", "plain text", "corrupt gzip data"),
        ("rows.jsonl.zst", "plain text", "corrupt zstd data"),
        ("rows.jsonl.xz", "plain text", "not readable to its end"),
    ],
)
def test_an_unreadable_file_is_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(FoundryError, match=message) as raised:
        prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), str(tmp_path / name)))
    assert str(raised.value).startswith(str(tmp_path / name))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"instruction": "\xff", "output": "x"}', "invalid UTF-8"),
        (b"null", "not an object"),
        (b'["a", "b"]', "not an object"),
        (b'{"instruction": "\\ud800", "output": "x"}', "wrong type"),
        (b'{"instruction": NaN, "output": "x"}', "wrong type"),
        (b'{"instruction": ["a"], "output": "x"}', "wrong type"),
        (b'{"prompt": "renamed", "output": "x"}', "missing key"),
    ],
)
def test_one_line_that_is_no_row_is_counted_not_the_end_of_the_file(line, reason, tmp_path):
    rows = [json.dumps(row).encode() for row in many("alpaca", 40)]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join([*rows[:20], b"", line, *rows[20:]]))
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), str(tmp_path / "rows.jsonl")))
    manifest = json.loads((folder / "chat.json").read_text())
    assert (manifest["rows"], manifest["malformed"], manifest["different_samples"]) == (41, {reason: 1}, 40)
    assert manifest["first_malformed"]["row"] == 22


def test_no_value_is_made_into_another(tmp_path):
    """Where ``datasets`` reads JSON by the block it makes dates into timestamps and a late list into text."""
    rows = [{"instruction": f"2020-01-{day:02d}", "output": f"2021-01-{day:02d}"} for day in range(1, 29)]
    file = write(tmp_path / "rows.jsonl", [*rows, {"instruction": ["late"], "output": "x"}])
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), file, validation_fraction=0))
    assert {"messages": said("2020-01-07", "2021-01-07")} in read(folder, "sft_train.jsonl")
    assert json.loads((folder / "chat.json").read_text())["malformed"] == {"wrong type": 1}


def test_a_parquet_row_that_is_not_utf_8_is_counted(tmp_path):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"one", b"two", b"\xff", *(b"%d" % number for number in range(30))])
    column = pyarrow.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    table = pyarrow.table({"instruction": column, "output": column})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), str(tmp_path / "rows.parquet")))
    manifest = json.loads((folder / "chat.json").read_text())
    assert (manifest["malformed"], manifest["first_malformed"]["row"]) == ({"invalid UTF-8": 1}, 3)


def test_samples_that_open_alike_cannot_be_split(tmp_path):
    rows = [{"instruction": "Joke!", "output": str(i)} for i in range(5)]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(FoundryError, match="all 5 samples open with the same question"):
        prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), file))
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out"), file, validation_fraction=0))
    assert len(read(folder, "sft_train.jsonl")) == 5
    assert not (folder / "sft_heldout.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "alpacca"}, "dataset: expected one of alpaca, "),
        ({"validation_fraction": 1.0}, "validation_fraction: expected a number from 0 to below 1"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"max_samples": 0}, "max_samples: expected at least 1"),
        ({"max_malformed_fraction": 2}, "max_malformed_fraction: expected a number from 0 to 1"),
        ({"language": "en"}, "language: alpaca does not say"),
        ({"file": "a.json", "revision": "main"}, "revision: belongs to the Hub"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChatSettings(**{"dataset": "alpaca", "output_dir": "out", **options})


def put_in_the_cache(cache, repository, revision, rows):
    """What `datasets` leaves in its cache after loading a dataset of the Hub."""
    from datasets import Dataset, DatasetInfo, SplitDict, SplitInfo
    from datasets.arrow_writer import ArrowWriter

    owner, name = repository.split("/")
    folder = cache / f"{owner}___{name}" / "default" / "0.0.0" / revision
    folder.mkdir(parents=True)
    table = Dataset.from_list(rows)
    with ArrowWriter(path=str(folder / f"{name}-train.arrow"), features=table.features) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    splits = SplitDict({"train": SplitInfo("train", num_examples=len(rows), dataset_name=name)})
    info = DatasetInfo(features=table.features, builder_name="json", dataset_name=name, config_name="default",
                       version="0.0.0", splits=splits)  # fmt: skip
    info.write_to_directory(str(folder))


def test_a_dataset_in_the_cache_needs_no_network(tmp_path):
    revision = "d" * 40
    put_in_the_cache(tmp_path / "cache", "tatsu-lab/alpaca", revision, list(many("alpaca", 20)))
    folder = prepare_chat(ChatSettings("alpaca", str(tmp_path / "out")))
    manifest = json.loads((folder / "chat.json").read_text())
    assert manifest["source"]["repository"] == "tatsu-lab/alpaca"
    assert manifest["source"]["revision"] == revision
    assert len(read(folder, "sft_train.jsonl")) == 19
    with pytest.raises(FoundryError, match=f"the cache has revision {revision} of tatsu-lab/alpaca, not e+"):
        prepare_chat(ChatSettings("alpaca", str(tmp_path / "other"), revision="e" * 40))


def test_a_cached_dataset_without_the_split_is_one_line(tmp_path):
    put_in_the_cache(tmp_path / "cache", "HuggingFaceH4/ultrachat_200k", "d" * 40, list(many("ultrachat", 5)))
    with pytest.raises(FoundryError, match=r"HuggingFaceH4/ultrachat_200k: cannot be loaded \(.*train_sft"):
        prepare_chat(ChatSettings("ultrachat", str(tmp_path / "out")))


def run(*arguments):
    command = [sys.executable, "recipes/prepare_data.py", "chat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def test_the_command_offline_says_what_to_give(tmp_path):
    finished = run("--dataset=hh_rlhf", f"--output_dir={tmp_path / 'out'}")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1] == (
        "error: hh_rlhf: Anthropic/hh-rlhf is neither reachable nor in the cache; fetch it where there is a "
        "network, or give --file FILE, a json, jsonl or parquet file with chosen, rejected"
    )
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    file = write(tmp_path / "rows.jsonl", many("hh_rlhf", 25))
    finished = run(
        "--dataset=hh_rlhf", f"--file={file}", f"--output_dir={tmp_path / 'out'}", "--max_samples=10"
    )
    assert finished.returncode == 0, finished.stderr
    assert "conversations that open differently" in finished.stdout
    assert len(read(tmp_path / "out", "dpo_train.jsonl")) == 9
