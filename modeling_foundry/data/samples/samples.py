"""The shape of one row that SFT or DPO reads: what would be misread, or dropped though it matters, is refused.

Rows of one file come from many hands.  Training, its held-out file and the linter all take a row through
:func:`checked_sample`, so that none of them reads what another refuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from .conversations import ROLES, MalformedRowError, Reason, Row, as_text, kind_in_words

Kind = Literal["sft", "preference"]
COLUMNS: dict[Kind, tuple[str, ...]] = {"sft": ("messages",), "preference": ("prompt", "chosen", "rejected")}
# What TRL hands to the chat template beside the messages.
CARRIED = ("tools", "chat_template_kwargs")
PLAIN_KEYS = {"role", "content"}

CONVERTS = "`prepare_data.py chat --dataset={} --file=FILE --output_dir=FOLDER` converts it"
# Keys of another format -> what it is; the first that a row has.
OTHER_FORMATS: tuple[tuple[set[str], str], ...] = (
    ({"conversations"}, f"ShareGPT's format ({CONVERTS.format('slimorca')})"),
    ({"conversation"}, f"Capybara's format ({CONVERTS.format('capybara')})"),
    ({"instruction", "output"}, f"Alpaca's format ({CONVERTS.format('alpaca')})"),
    ({"instruction", "response"}, f"Dolly's format ({CONVERTS.format('dolly')})"),
    ({"question", "chosen", "rejected"}, f"Orca's format ({CONVERTS.format('orca_dpo')})"),
    ({"prompt", "completion"}, "write both as one list of messages, the last by the assistant"),
    ({"prompt", "chosen", "rejected"}, "a preference pair, which dpo.py reads"),
    (
        {"chosen", "rejected"},
        f"two whole dialogues ({CONVERTS.format('ultrafeedback')}; of transcripts, hh_rlhf)",
    ),
    ({"messages"}, "a conversation, which sft.py reads"),
    ({"text"}, "a document, which pretraining reads"),
)

# Which turns are learned is the template's to say: these keys say it another way, and nobody reads them.
TURN_WEIGHTS = ("weight", "loss_weight", "train", "training", "trainable", "loss", "mask", "loss_mask")
ROW_WEIGHTS = ("weight", "weights", "loss_weight", "sample_weight", "train", "loss_mask")
# Ambiguous: 1 is "learn it" to some and "leave it out" to others.
MASKS = ("mask", "loss_mask", "weights")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
MISPLACED = {
    "system": "write it as the first message, with the role system",
    "system_prompt": "write it as the first message, with the role system",
    "functions": "write them under tools",
    "documents": "write them into a message",
}  # fmt: skip
# Parameters of apply_chat_template, which TRL sets; a row must not.
NOT_FOR_TEMPLATES = {
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict",
    "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs",
}  # fmt: skip


# A fraction, an exponent or sixteen digits: the library that keeps JSON in data sets may round what has them.
RISKY_NUMBER = re.compile(r"\d\.\d|\d[eE][-+\d]|\d{16}")


def kind_of(row: Row, kind: Kind | Literal["auto"] = "auto") -> Kind:
    """The kind that was asked for; ``auto`` is what the keys of a row say.

    Raises:
        MalformedRowError: neither conversation nor preference pair.
    """
    if kind != "auto":
        return kind
    for name, columns in COLUMNS.items():
        if all(column in row for column in columns):
            return name
    raise MalformedRowError(
        Reason.MISSING_KEY, f"messages, or prompt, chosen and rejected{_what_it_has(row)}"
    )


def checked_sample(row: Row, kind: Kind, is_typed: bool = False) -> dict[str, Any]:
    """What training reads of a row: its messages, tools and template variables, exactly as the file has them.

    Args:
        is_typed: the row comes from typed columns, where a missing key is a null.

    Raises:
        MalformedRowError: naming the key, what is there, and what would be right.
    """
    columns = COLUMNS[kind]
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        names = [f"{name} (null)" if name in row else name for name in missing]
        raise MalformedRowError(Reason.MISSING_KEY, f"{', '.join(names)}{_what_it_has(row)}")
    sample: dict[str, Any] = {name: _messages(row[name], name, is_typed) for name in columns}
    if kind == "sft":
        _check_conversation(sample["messages"])
    else:
        _check_pair(**sample)
    if not row.keys() <= sample.keys():
        _refuse_what_nobody_reads(row)
        sample |= _carried(row, is_typed)
    return sample


def _what_it_has(row: Row) -> str:
    present = [key for key, value in row.items() if value is not None]
    for keys, what in OTHER_FORMATS:
        if keys <= set(present):
            return f"; the row has {', '.join(key for key in present if key in keys)}: {what}"
    return f"; the row has {', '.join(present[:5]) or 'nothing'}"  # not all: there may be hundreds


# ---------------------------------------------------------------------------------------------- messages


def _messages(value: Any, name: str, is_typed: bool) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        detail = f"{name} is {kind_in_words(value)}; expected a list of messages, each with role and content"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    if not value:
        raise MalformedRowError(Reason.EMPTY_TEXT, f"{name} has no messages")
    return [
        _message(message, f"{name}, turn {turn}", is_typed) for turn, message in enumerate(value, start=1)
    ]


def _message(message: Any, where: str, is_typed: bool) -> dict[str, Any]:
    if not isinstance(message, dict):
        detail = f"{where} is {kind_in_words(message)}; expected an object with role and content"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    if is_typed:
        message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message:
        known = "; from and value are ShareGPT's names of role and content" * ("from" in message)
        raise MalformedRowError(Reason.MISSING_KEY, f"role in {where}{known}")
    _check_role(as_text(message["role"], f"{where}: role"), where)
    if message.keys() > PLAIN_KEYS or message.get("content") is None:
        message = _with_more_keys(message, where, is_typed)
    if message.get("content") is not None:
        _check_content(message["content"], where)
    return message


def _check_role(role: str, where: str) -> None:
    known = ROLES.get(role) or ROLES.get(role.strip().lower())
    if not role.strip() or known not in (None, role):
        expected = known or "user, assistant, system or tool"
        raise MalformedRowError(Reason.UNKNOWN_ROLE, f"{where}: {role!r}; expected {expected}")


def _check_content(content: Any, where: str) -> None:
    if isinstance(content, list):
        detail = f"{where}: content is a list of parts, not text; join their text"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    as_text(content, f"{where}: content")


def _with_more_keys(message: dict[str, Any], where: str, is_typed: bool) -> dict[str, Any]:
    """The message without keys that say what is done anyway; what it has beside its text can be carried."""
    for key in ("function_call", *MEDIA):
        if message.get(key):
            expected = "write it under tool_calls" if key == "function_call" else "text alone is learned"
            raise MalformedRowError(Reason.NOT_TRAINED, f"{where}: {key}; {expected}")
    is_answer = message["role"] == "assistant"
    message = _without_weights(message, TURN_WEIGHTS, is_answer, where)
    if message.get("tool_calls"):
        _check_calls(message["tool_calls"], where, is_typed)
    elif message.get("content") is None:
        what = "null" if "content" in message else "missing"
        detail = f"{where}: content is {what}; expected text (null stands beside tool_calls alone)"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    _check_carried({key: value for key, value in message.items() if key not in PLAIN_KEYS}, where)
    return message


def _without_weights(
    values: Mapping[str, Any], names: Sequence[str], is_learned: bool, where: str
) -> dict[str, Any]:
    for key in names:
        value = values.get(key)
        if value is None or (key not in MASKS and isinstance(value, (int, float)) and value == is_learned):
            continue
        done = "every answer is learned, with the same weight" if is_learned else "only answers are learned"
        raise MalformedRowError(
            Reason.NOT_TRAINED, f"{where}: {key} is {value!r:.40}, but {done}; leave it out"
        )
    return {key: value for key, value in values.items() if key not in names}


def _check_calls(calls: Any, where: str, is_typed: bool) -> None:
    expected = "expected a list of {type, function: {name, arguments}}"
    if not isinstance(calls, list):
        detail = f"{where}: tool_calls is {kind_in_words(calls)}; {expected}"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    for number, call in enumerate(calls, start=1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            detail = f"{where}: tool_calls: call {number} names no function; {expected}"
            raise MalformedRowError(Reason.WRONG_TYPE, detail)
        if is_typed and isinstance(function.get("arguments"), dict):
            raise MalformedRowError(Reason.WRONG_TYPE, f"{where}: arguments {TYPED_OBJECT}")


TYPED_OBJECT = (
    "are an object of a typed column, which has every other row's keys as nulls; write JSON text instead"
)


# ------------------------------------------------------------------------------- conversations and pairs


def _check_conversation(messages: list[dict[str, Any]]) -> None:
    last = messages[-1]["role"]
    if last != "assistant":
        detail = f"messages ends with a turn of {last}; drop it, or add the answer"
        raise MalformedRowError(Reason.NO_ANSWER, detail)


def _check_pair(
    prompt: list[dict[str, Any]], chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> None:
    if prompt[-1]["role"] == "assistant":
        detail = "prompt ends with a turn of assistant; expected the question last"
        raise MalformedRowError(Reason.NOT_ALTERNATING, detail)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        others = [message["role"] for message in answer if message["role"] != "assistant"]
        if others:
            detail = f"{name} holds a turn of {others[0]}, which would be learned; expected it in prompt"
            raise MalformedRowError(Reason.NOT_AN_ANSWER, detail)


# ------------------------------------------------------------------------------------ beside the messages


def _refuse_what_nobody_reads(row: Row) -> None:
    for key, expected in MISPLACED.items():
        if row.get(key):
            raise MalformedRowError(Reason.NOT_TRAINED, f"{key}: no template reads it there; {expected}")
    for key in MEDIA:
        if row.get(key):
            raise MalformedRowError(Reason.NOT_TRAINED, f"{key}: text alone is learned; leave it out")
    _without_weights(row, ROW_WEIGHTS, True, "the row")


def _carried(row: Row, is_typed: bool) -> dict[str, Any]:
    """Tools and template variables, where there are any."""
    found: dict[str, Any] = {}
    if row.get("tools"):
        found["tools"] = _tools(row["tools"], is_typed)
    if row.get("chat_template_kwargs"):
        found["chat_template_kwargs"] = _template_variables(row["chat_template_kwargs"], is_typed)
    _check_carried(found, "the row")
    return found


def _tools(tools: Any, is_typed: bool) -> list[Any]:
    if is_typed and not isinstance(tools, str):
        raise MalformedRowError(Reason.WRONG_TYPE, f"tools {TYPED_OBJECT}")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise MalformedRowError(Reason.WRONG_TYPE, f"tools is text that is not JSON ({error})") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise MalformedRowError(
            Reason.WRONG_TYPE, "tools: expected a list of objects, or such a list as JSON text"
        )
    return tools


def _template_variables(values: Any, is_typed: bool) -> dict[str, Any]:
    if not isinstance(values, dict):
        detail = f"chat_template_kwargs is {kind_in_words(values)}; expected an object"
        raise MalformedRowError(Reason.WRONG_TYPE, detail)
    if is_typed:
        values = {key: value for key, value in values.items() if value is not None}
    for key in values.keys() & NOT_FOR_TEMPLATES:
        detail = f"chat_template_kwargs: {key} is no variable of a template; leave it out"
        raise MalformedRowError(Reason.NOT_TRAINED, detail)
    return values


def _check_carried(values: Mapping[str, Any], where: str) -> None:
    """Whether values other than text arrive in training as they are: as JSON, and with every digit."""
    for key, value in values.items():
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
            text.encode()
        except UnicodeEncodeError:
            raise MalformedRowError(
                Reason.WRONG_TYPE, f"{where}: {key} holds half of a surrogate pair"
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise MalformedRowError(Reason.WRONG_TYPE, f"{where}: {key} is no JSON ({error})") from None
        if not isinstance(value, str) and RISKY_NUMBER.search(text) and not _survives(text, value):
            detail = f"{where}: {key} holds a number with more digits than are kept; write it as text"
            raise MalformedRowError(Reason.WRONG_TYPE, detail)


def _survives(text: str, value: Any) -> bool:
    from datasets import Json

    stored = Json()
    return bool(stored.decode_example(stored.encode_example(text)) == value)


# ---------------------------------------------------------------------------------------------- forms


def form_of(sample: Mapping[str, Any]) -> Hashable:
    """Which branches of a template a sample can reach: its roles in their order, and the keys it has.

    Samples of one form differ in their texts and in how often a question and its answer repeat.
    """
    lists = [value for name, value in sample.items() if name not in CARRIED]
    roles = tuple(tuple(message["role"] for message in messages) for messages in lists)
    keys = frozenset(
        (message["role"], key, message[key] is None)
        for messages in lists
        for message in messages
        if message.keys() != PLAIN_KEYS
        for key in message
    )
    variables = frozenset(sample.get("chat_template_kwargs", ()))
    return _pattern(roles), keys, "tools" in sample, variables


@lru_cache(maxsize=4096)
def _pattern(roles: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Roles, with an exchange that repeats written once, and a role that repeats by itself twice."""
    written = ("|".join((*names, "")) for names in roles)
    once = (
        re.sub(r"((?:[^|]+\|){2,4}?)\1+", r"\1", re.sub(r"([^|]+\|)\1+", r"\1\1", each)) for each in written
    )
    return tuple(once)
