"""One row check for SFT, DPO, their held-out files and the linter: what it lets pass is what is trained."""

import datetime

import pytest

from modeling_foundry.data.samples.conversations import MalformedRowError
from modeling_foundry.data.samples.samples import checked_sample, form_of, kind_of

USER = {"role": "user", "content": "Say hello."}
ANSWER = {"role": "assistant", "content": "Hello!"}
CALL = {"type": "function", "function": {"name": "greet", "arguments": {"loud": True, "times": 3}}}
TOOL = {"type": "function", "function": {"name": "greet", "parameters": {"loud": {"default": None}}}}


def row(*messages, **more):
    return {"messages": list(messages or (USER, ANSWER)), **more}


def pair(**changed):
    return {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "What?"}], **changed}


def refusal(row, kind="sft", **options):
    with pytest.raises(MalformedRowError) as caught:
        checked_sample(row, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-03",
        "2024-01-03T10:00:00Z",
        "007",
        "1" * 60,
        "true",
        "null",
        "NaN",
        "1e400",
        "",
        "[]",
        "<datetime>",
    ],
)
def test_a_text_that_looks_like_another_type_is_text(text):
    answer = {**ANSWER, "content": text}
    assert checked_sample(row(USER, answer), "sft") == {"messages": [USER, answer]}
    assert checked_sample(pair(chosen=[answer]), "preference")["chosen"] == [answer]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (20240103, "content is a number, not text"),
        (7.5, "content is a number, not text"),
        (True, "content is true or false, not text"),
        (None, "content is null; expected text (null stands beside tool_calls alone)"),
        ({"a": 1}, "content is an object, not text"),
        ([{"type": "text", "text": "Hello!"}], "content is a list of parts, not text; join their text"),
        (datetime.date(2024, 1, 3), "content is date, not text"),
        ("half \ud83d", "content holds half of a surrogate pair"),
    ],
)
def test_a_content_that_is_no_text_is_refused(content, words):
    wrong = {**ANSWER, "content": content}
    assert refusal(row(USER, wrong)) == f"wrong type: messages, turn 2: {words}"
    assert refusal(pair(rejected=[wrong]), "preference") == f"wrong type: rejected, turn 1: {words}"


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("Hello!", "wrong type: messages is text; expected a list of messages"),
        ({"role": "user"}, "wrong type: messages is an object; expected a list"),
        (None, "missing key: messages (null); the row has nothing"),
        ([], "empty text: messages has no messages"),
        (["Hello!"], "wrong type: messages, turn 1 is text; expected an object"),
        ([USER, None], "wrong type: messages, turn 2 is null; expected an object"),
        ([{"content": "a"}], "missing key: role in messages, turn 1"),
        ([{"from": "human", "value": "a"}], "missing key: role in messages, turn 1; from and value are ShareGPT's"),
        ([{"role": 1, "content": "a"}], "wrong type: messages, turn 1: role is a number, not text"),
        ([{"role": "user"}], "wrong type: messages, turn 1: content is missing"),
        ([{"role": "user", "text": "a"}], "wrong type: messages, turn 1: content is missing"),
        ([{"role": "human", "content": "a"}], "unknown role: messages, turn 1: 'human'; expected user"),
        ([USER, {"role": "gpt", "content": "a"}], "unknown role: messages, turn 2: 'gpt'; expected assistant"),
        ([USER, {"role": "Assistant", "content": "a"}], "turn 2: 'Assistant'; expected assistant"),
        ([{"role": " ", "content": "a"}], "unknown role: messages, turn 1: ' '; expected user, assistant"),
        ([USER], "no assistant turn last: messages ends with a turn of user; drop it, or add the answer"),
        ([USER, ANSWER, USER], "no assistant turn last: messages ends with a turn of user"),
        ([USER, ANSWER, {"role": "tool", "content": "1"}], "messages ends with a turn of tool"),
    ],
)  # fmt: skip
def test_a_conversation_of_another_shape_is_refused(messages, words):
    assert words in refusal({"messages": messages})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": "Say hello."}, "wrong type: prompt is text; expected a list of messages"),
        ({"chosen": "Hello!"}, "wrong type: chosen is text"),
        ({"rejected": []}, "empty text: rejected has no messages"),
        ({"rejected": None}, "missing key: rejected (null); the row has prompt, chosen"),
        ({"prompt": [USER, ANSWER]}, "roles not alternating: prompt ends with a turn of assistant"),
        ({"chosen": [USER, ANSWER]}, "not the answer alone: chosen holds a turn of user, which would be learned"),
        ({"rejected": [ANSWER, USER]}, "not the answer alone: rejected holds a turn of user"),
    ],
)  # fmt: skip
def test_a_pair_of_another_shape_is_refused(changed, words):
    assert words in refusal(pair(**changed), "preference")


@pytest.mark.parametrize(
    ("kind", "other", "words"),
    [
        ("sft", {"conversations": []}, "conversations: ShareGPT's format (`prepare_data.py chat --dataset=slimorca"),
        ("sft", {"instruction": "", "input": "", "output": ""}, "instruction, output: Alpaca's format"),
        ("sft", {"instruction": "", "response": ""}, "Dolly's format"),
        ("sft", {"prompt": "", "completion": ""}, "prompt, completion: write both as one list of messages"),
        ("sft", pair(), "prompt, chosen, rejected: a preference pair, which dpo.py reads"),
        ("sft", {"text": ""}, "text: a document, which pretraining reads"),
        ("sft", {"a": 1}, "missing key: messages; the row has a"),
        ("sft", {}, "missing key: messages; the row has nothing"),
        ("preference", row(), "prompt, chosen, rejected; the row has messages: a conversation, which sft.py reads"),
        ("preference", {"chosen": [], "rejected": []}, "prompt; the row has chosen, rejected: two whole dialogues"),
        ("preference", {"system": "", "question": "", "chosen": "", "rejected": ""}, "Orca's format"),
    ],
)  # fmt: skip
def test_a_row_of_another_format_is_named_for_what_it_is(kind, other, words):
    assert words in refusal(other, kind)


def test_the_commands_that_a_refusal_names_exist():
    from modeling_foundry.data.chat.datasets import DATASETS
    from modeling_foundry.data.samples.samples import OTHER_FORMATS

    named = {words.split("--dataset=")[1].split()[0] for _, words in OTHER_FORMATS if "--dataset=" in words}
    assert (
        named == {"slimorca", "capybara", "alpaca", "dolly", "orca_dpo", "ultrafeedback"} <= DATASETS.keys()
    )


# ------------------------------------------------------------------------------------- what is carried


def test_calls_tools_and_variables_are_carried_as_they_are():
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "done", "tool_call_id": "1"}
    thinking = {**ANSWER, "reasoning_content": "It is a greeting."}
    messages = [USER, calling, result, thinking]
    found = checked_sample(
        row(*messages, tools=[TOOL], chat_template_kwargs={"enable_thinking": False}, source="me"), "sft"
    )
    assert found == {
        "messages": messages,
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    found = checked_sample(pair(tools='[{"name": "f"}]', chosen=[calling]), "preference")
    assert (found["tools"], found["chosen"]) == ([{"name": "f"}], [calling])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tools": "greet"}, "wrong type: tools is text that is not JSON"),
        ({"tools": ["greet"]}, "wrong type: tools: expected a list of objects"),
        ({"tools": {"name": "greet"}}, "wrong type: tools: expected a list of objects"),
        ({"chat_template_kwargs": "enable_thinking"}, "chat_template_kwargs is text; expected an object"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template is no variable of a template"),
        ({"chat_template_kwargs": {"max_length": 3}}, "max_length is no variable of a template"),
        ({"chat_template_kwargs": {"tokenize": False}}, "tokenize is no variable of a template"),
        ({"tools": [{"name": "f", "limit": 2**80}]}, "tools holds a number with more digits than are kept"),
        ({"tools": [{"name": "f", "limit": float("nan")}]}, "tools is no JSON"),
        ({"tools": [{"name": "\ud83d"}]}, "the row: tools holds half of a surrogate pair"),
        ({"system": "Be brief."}, "system: no template reads it there; write it as the first message"),
        ({"functions": [TOOL]}, "functions: no template reads it there; write them under tools"),
        ({"images": ["a.png"]}, "images: text alone is learned"),
        ({"weight": 0}, "not what is trained: the row: weight is 0, but every answer is learned"),
        ({"weight": 0.5}, "weight is 0.5"),
        ({"train": False}, "train is False"),
        ({"sample_weight": "high"}, "sample_weight is 'high'"),
    ],
)
@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_what_a_row_holds_and_training_would_lose_is_refused(kind, more, words):
    assert words in refusal({**(row() if kind == "sft" else pair()), **more}, kind)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({**ANSWER, "weight": 0}, "turn 2: weight is 0, but every answer is learned, with the same weight"),
        ({**ANSWER, "weight": 0.5}, "weight is 0.5"),
        ({**ANSWER, "train": False}, "train is False"),
        ({**ANSWER, "loss": "no"}, "loss is 'no'"),
        ({**ANSWER, "mask": 1}, "mask is 1"),
        ({**ANSWER, "function_call": {"name": "f"}}, "function_call; write it under tool_calls"),
        ({**ANSWER, "images": ["a.png"]}, "images; text alone is learned"),
        ({**ANSWER, "tool_calls": "greet()"}, "tool_calls is text; expected a list of {type, function"),
        ({**ANSWER, "tool_calls": [{"function": {"arguments": {}}}]}, "tool_calls: call 1 names no function"),
        ({**ANSWER, "tool_calls": [CALL, "greet"]}, "tool_calls: call 2 names no function"),
        ({**ANSWER, "note": 2**70}, "note holds a number with more digits than are kept"),
        ({**ANSWER, "note": "\udc00"}, "note holds half of a surrogate pair"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content is null; expected text"),
    ],
)
def test_what_a_turn_holds_and_training_would_lose_is_refused(message, words):
    assert words in refusal(row(USER, message))


def test_weights_that_say_what_is_done_anyway_are_no_fault():
    messages = [{**USER, "weight": 0, "train": False}, {**ANSWER, "weight": 1, "train": True, "loss": None}]
    assert checked_sample(row(*messages, weight=1.0), "sft") == row()
    assert "only answers are learned" in refusal(row({**USER, "weight": 1}, ANSWER))


def test_typed_columns_hold_nulls_for_keys_that_other_rows_have():
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    empty = {**USER, "tool_calls": None, "name": None}
    assert checked_sample(row(empty, {**ANSWER, "tool_calls": None}), "sft", is_typed=True) == row()
    assert "arguments are an object of a typed column" in refusal(row(empty, calling), is_typed=True)
    assert "tools are an object of a typed column" in refusal(row(tools=[TOOL]), is_typed=True)
    found = checked_sample(row(tools="[]", chat_template_kwargs={"a": None, "b": 1}), "sft", is_typed=True)
    assert found["chat_template_kwargs"] == {"b": 1}


def test_the_kind_of_a_row():
    assert (kind_of(row()), kind_of(pair()), kind_of({}, "sft")) == ("sft", "preference", "sft")
    with pytest.raises(
        MalformedRowError, match="missing key: messages, or prompt, chosen and rejected; the row has a"
    ):
        kind_of({"a": 1})


def test_forms_differ_by_what_a_template_can_see():
    long = {**ANSWER, "content": "x" * 100}
    assert form_of(row()) == form_of(row(USER, long)) == form_of(row(*[USER, ANSWER] * 5))
    others = [
        row({"role": "system", "content": "a"}, USER, ANSWER), row(USER, USER, ANSWER), row(tools=[TOOL]),
        row(USER, {**ANSWER, "reasoning_content": "a"}), row(chat_template_kwargs={"a": 1}), pair(), row(ANSWER),
    ]  # fmt: skip
    assert len({form_of(sample) for sample in [row(), *others]}) == len(others) + 1
