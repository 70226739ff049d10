"""Rows of public chat datasets as conversations: pure functions, and a typed error for each malformed row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

Row = Mapping[str, Any]
Message = dict[str, str]
# {"messages": [...]}, or {"prompt": [...], "chosen": [...], "rejected": [...]}.
Sample = dict[str, list[Message]]

ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user", "Human": "user",
    "assistant": "assistant", "gpt": "assistant", "Assistant": "assistant",
}  # fmt: skip
KINDS = {
    type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip
# A turn of an HH-RLHF transcript begins after an empty line, or at the very start.
TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class Reason(StrEnum):
    """Why a row cannot be used."""

    NOT_JSON = "not JSON"
    NOT_UTF8 = "invalid UTF-8"
    NOT_A_ROW = "not an object"
    MISSING_KEY = "missing key"
    WRONG_TYPE = "wrong type"
    EMPTY_TEXT = "empty text"
    UNKNOWN_ROLE = "unknown role"
    NOT_ALTERNATING = "roles not alternating"
    NO_ANSWER = "no assistant turn last"
    SAME_ANSWERS = "chosen equals rejected"
    EARLY_DIFFERENCE = "chosen and rejected differ before the last turn"
    NOT_AN_ANSWER = "not the answer alone"
    NOT_TRAINED = "not what is trained"
    NOT_A_TRANSCRIPT = "not a transcript"
    ID_TWICE = "message id twice"
    NO_PARENT = "parent not in the file"
    CYCLE = "parents in a circle"


class MalformedRowError(ValueError):
    """A row that is no sample.

    Args:
        reason: what it is counted under.
        detail: the key, or what was found.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason


def text_of(row: Row, key: str) -> str:
    """The text under a key, as it stands."""
    value = row.get(key)
    if value is None:
        raise MalformedRowError(Reason.MISSING_KEY, key)
    return _text(value, key)


def optional_text_of(row: Row, key: str) -> str:
    """The text under a key; empty where the key is absent, null or blank."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return _text(value, key)


def _text(value: Any, key: str) -> str:
    if not as_text(value, key).strip():
        raise MalformedRowError(Reason.EMPTY_TEXT, key)
    return value


def as_text(value: Any, key: str) -> str:
    """The value, which must be text that UTF-8 holds; blank is text, too."""
    if not isinstance(value, str):
        raise MalformedRowError(Reason.WRONG_TYPE, f"{key} is {kind_in_words(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedRowError(Reason.WRONG_TYPE, f"{key} holds half of a surrogate pair") from None
    return value


def kind_in_words(value: Any) -> str:
    """``a list``, ``null``: what JSON calls a value, else the name of its class."""
    return KINDS.get(type(value), type(value).__name__)


def list_of(row: Row, key: str) -> list[Row]:
    """The list of mappings under a key."""
    value = row.get(key)
    if value is None:
        raise MalformedRowError(Reason.MISSING_KEY, key)
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise MalformedRowError(Reason.WRONG_TYPE, f"{key} is not a list of turns")
    return value


def conversation(turns: Iterable[tuple[str, str]]) -> list[Message]:
    """Turns as messages: perhaps a system message, then user and assistant in turn, an answer last.

    Args:
        turns: role, under any of the names in ``ROLES``, and content.
    """
    messages = []
    for role, content in turns:
        if role not in ROLES:
            raise MalformedRowError(Reason.UNKNOWN_ROLE, role)
        messages.append({"role": ROLES[role], "content": content})
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    for place, message in enumerate(spoken):
        if message["role"] != ("user", "assistant")[place % 2]:
            raise MalformedRowError(Reason.NOT_ALTERNATING, f"turn {place + 1} is {message['role']}")
    if not spoken or spoken[-1]["role"] != "assistant":
        raise MalformedRowError(Reason.NO_ANSWER)
    return messages


def turns_of(row: Row, key: str, role: str = "role", content: str = "content") -> list[Message]:
    """The conversation in a list of ``{role, content}``, a blank system message left out."""
    turns = list_of(row, key)
    if turns and turns[0].get(role) == "system" and not optional_text_of(turns[0], content):
        turns = turns[1:]
    return conversation((text_of(turn, role), text_of(turn, content)) for turn in turns)


def preference(chosen: list[Message], rejected: list[Message]) -> Sample:
    """Two whole dialogues that differ in their last answer: what they share is the prompt."""
    if _stripped(chosen) == _stripped(rejected):
        raise MalformedRowError(Reason.SAME_ANSWERS)
    if len(chosen) != len(rejected) or chosen[:-1] != rejected[:-1]:
        raise MalformedRowError(Reason.EARLY_DIFFERENCE)
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _stripped(messages: list[Message]) -> list[Message]:
    return [{**message, "content": message["content"].strip()} for message in messages]


def with_system_prompt(sample: Sample, system_prompt: str | None) -> Sample:
    """The sample, opened by this system message where it has none of its own."""
    first = "messages" if "messages" in sample else "prompt"
    if not system_prompt or sample[first][0]["role"] == "system":
        return sample
    return sample | {first: [{"role": "system", "content": system_prompt}, *sample[first]]}


def opening_of(sample: Sample) -> str:
    """The first user turn, by which train and held-out side are kept apart."""
    messages = sample.get("messages") or sample["prompt"]
    return next(message["content"] for message in messages if message["role"] == "user")


# ------------------------------------------------------------------------------------------ the datasets


def alpaca(row: Row) -> Sample:
    """``instruction``, ``input`` (often empty), ``output``."""
    return _single_turn(row, "instruction", "input", "output")


def dolly(row: Row) -> Sample:
    """``instruction``, ``context`` (often empty), ``response``."""
    return _single_turn(row, "instruction", "context", "response")


def _single_turn(row: Row, question: str, context: str, answer: str) -> Sample:
    parts = [text_of(row, question), optional_text_of(row, context)]
    asked = "\n\n".join(part for part in parts if part)
    return {"messages": conversation([("user", asked), ("assistant", text_of(row, answer))])}


def ultrachat(row: Row) -> Sample:
    """``messages``: role and content."""
    return {"messages": turns_of(row, "messages")}


def slimorca(row: Row) -> Sample:
    """ShareGPT's ``conversations``: from and value."""
    return {"messages": turns_of(row, "conversations", role="from", content="value")}


def capybara(row: Row) -> Sample:
    """``conversation``: pairs of input and output."""
    turns = []
    for pair in list_of(row, "conversation"):
        turns += [("user", text_of(pair, "input")), ("assistant", text_of(pair, "output"))]
    return {"messages": conversation(turns)}


def binarized(row: Row) -> Sample:
    """``chosen`` and ``rejected`` as whole message lists: UltraFeedback and Capybara-DPO."""
    return preference(turns_of(row, "chosen"), turns_of(row, "rejected"))


def hh_rlhf(row: Row) -> Sample:
    """``chosen`` and ``rejected`` as whole transcripts; every turn is kept."""
    return preference(*(parse_transcript(text_of(row, key)) for key in ("chosen", "rejected")))


def parse_transcript(text: str) -> list[Message]:
    r"""``\n\nHuman: … \n\nAssistant: …`` as messages; white space around a turn is layout, not content."""
    before, *parts = TURN.split(text)
    if before.strip() or not parts:
        raise MalformedRowError(Reason.NOT_A_TRANSCRIPT, "it does not begin with Human: or Assistant:")
    turns = [(role, content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)]
    for place, (role, content) in enumerate(turns, start=1):
        if not content:
            raise MalformedRowError(Reason.EMPTY_TEXT, f"turn {place}, {role}")
    return conversation(turns)


def orca_dpo(row: Row) -> Sample:
    """``system`` (often empty), ``question``, ``chosen``, ``rejected``."""
    system = optional_text_of(row, "system")
    prompt = [("system", system)] * bool(system) + [("user", text_of(row, "question"))]
    answers = (text_of(row, "chosen"), text_of(row, "rejected"))
    return preference(*(conversation([*prompt, ("assistant", answer)]) for answer in answers))
