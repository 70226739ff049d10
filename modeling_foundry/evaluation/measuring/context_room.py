"""What every model is asked, item by item, before any of them is loaded: is it sound, and is there room for it?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import sha256_of_file
from ...settings import FoundryError
from ..items.prompts import Prompt
from .tokens import characters, control_tokens, question, rendered_ids

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from .language_model import RequestReader

STOP_RATE = "stop_rate"
FEW_SHOT_SEED = 1234  # lm-eval's own, with which it will draw the same examples
NUM_SHOWN = 3


@dataclass(frozen=True)
class LeftOut:
    """An item that no model is measured on, and why.

    Args:
        where: the file and line of the item, or its number in the task.
    """

    task: str
    item: int
    where: str
    reason: str


def readers_of(models: dict[str, Path]) -> dict[str, RequestReader]:
    """Model -> its tokenizer and context; one object for those that are alike."""
    from .language_model import RequestReader

    readers: dict[str, RequestReader] = {}
    known: dict[tuple[Any, ...], RequestReader] = {}
    for name, folder in models.items():
        files = sorted([*folder.glob("tokenizer*"), *folder.glob("*.jinja"), *folder.glob("config.json")])
        key = tuple(sha256_of_file(path) for path in files if path.is_file())
        if key not in known:
            known[key] = RequestReader(folder)
        readers[name] = known[key]
    return readers


def needs_chat(tasks: Iterable[Any]) -> bool:
    """Whether anything but whole documents is asked."""
    return any(task.OUTPUT_TYPE != "loglikelihood_rolling" for task in tasks)


def items_without_room(
    task: Any, name: str, items: Sequence[int], readers: dict[str, RequestReader], path: Path | None
) -> list[LeftOut]:
    """The items that do not fit the context of every model, or that one of them cannot read as text.

    Args:
        items: numbers of the documents that will be measured.
        path: the file whose lines are the items, where that is known.

    Raises:
        FoundryError: an item that nothing can be measured on: an empty answer, no right one among the choices.
    """
    left_out: dict[int, LeftOut] = {}
    num_shots = task.config.num_fewshot or 0
    while True:  # with examples before the question, one item less changes the examples of those after it
        kept = [item for item in items if item not in left_out]
        new = _without_room(task, name, kept, readers, path)
        left_out |= {one.item: one for one in new}
        if not new or num_shots == 0:
            return sorted(left_out.values(), key=lambda one: one.item)


def _without_room(
    task: Any, name: str, items: Sequence[int], readers: dict[str, RequestReader], path: Path | None
) -> list[LeftOut]:
    found: dict[int, LeftOut] = {}
    alike: dict[int, tuple[str, RequestReader]] = {}
    for model, reader in readers.items():
        alike.setdefault(id(reader), (model, reader))
    documents = task.eval_docs
    for model, reader in alike.values():
        task.set_fewshot_seed(FEW_SHOT_SEED)
        for item in items:
            document = documents[item]
            where = _where(name, item, document, path)
            if reason := _why_not(task, name, item, document, reader, model, where):
                found.setdefault(item, LeftOut(name, item, where, reason))
    return list(found.values())


def _why_not(
    task: Any, name: str, item: int, document: Any, reader: RequestReader, model: str, where: str
) -> str:
    try:
        require_sound(task, document, where)
        requests = requests_of(task, name, item, document, reader)
    except FoundryError:
        raise
    except Exception as error:  # a task is a program of its own: it may fail with anything
        reason = " ".join(str(error).split())[:200]
        raise FoundryError(f"{where}: {name} cannot ask it ({type(error).__name__}: {reason})") from error
    return why_not(requests, reader, model, where)


def _where(name: str, item: int, document: Any, path: Path | None) -> str:
    return f"{path}:{document['line']}" if path and "line" in document else f"{name}: item {item}"


def require_sound(task: Any, document: Any, where: str) -> None:
    """An item of several answers has none that is empty, and the right one is among them.

    Raises:
        FoundryError: it has not; lm-eval divides by nothing, or counts a miss.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices = task.doc_to_choice(document)
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice:
            raise FoundryError(f"{where}: choice {number}: expected text, found {choice!r}")
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    for one in gold if isinstance(gold, list) else [gold]:
        is_there = one in choices if isinstance(one, str) else _is_place(one, len(choices))
        if not is_there:
            raise FoundryError(
                f"{where}: right answer: expected 0 to {len(choices) - 1} or one of the choices, found {one!r}"
            )


def _is_place(gold: Any, num_choices: int) -> bool:
    return isinstance(gold, int) and not isinstance(gold, bool) and 0 <= gold < num_choices


def requests_of(task: Any, name: str, item: int, document: Any, reader: RequestReader) -> list[Any]:
    """The requests of one document, as lm-eval will build them."""
    in_chat = task.OUTPUT_TYPE != "loglikelihood_rolling"
    template = reader.apply_chat_template if in_chat else None
    context = task.fewshot_context(
        document, num_fewshot=task.config.num_fewshot or 0, apply_chat_template=in_chat,
        fewshot_as_multiturn=in_chat, chat_template=template, gen_prefix=task.doc_to_prefix(document),
    )  # fmt: skip
    requests = task.construct_requests(
        doc=document,
        ctx=context,
        metadata=(name, item, 1),
        apply_chat_template=in_chat,
        chat_template=template,
    )
    return requests if isinstance(requests, list) else [requests]


def why_not(requests: list[Any], reader: RequestReader, model: str, where: str) -> str:
    """Why a model cannot be asked that; empty where it can.

    Raises:
        FoundryError: an answer without a token.
    """
    longest = 0
    for request in requests:
        if request.request_type == "loglikelihood" and not reader.encoded(request)[1]:
            raise FoundryError(f"{where}: an answer without a token for {model}: {request.args[1]!r}")
        if request.request_type == "loglikelihood_rolling" and (token := control_token_in(reader, request)):
            return f"{token}, as which {model} reads a part of it, whatever is asked"
        longest = max(longest, reader.num_positions(request))
    return _too_long(longest, model, reader)


def control_token_in(reader: RequestReader, request: Any) -> str | None:
    """A control token that ordinary text becomes: some vocabularies hold the spelling as a word of their own."""
    control = control_tokens(reader.tokenizer)
    unknown = {reader.tokenizer.unk_token_id}
    ids = characters(reader.tokenizer, request.args[0])
    return next((control[id] for id in ids if id in control and id not in unknown), None)


def prompts_without_room(
    prompts: Sequence[Prompt], readers: dict[str, RequestReader], max_new_tokens: int
) -> list[LeftOut]:
    """Questions of the stop rate whose answer would not fit the context of every model.

    Raises:
        FoundryError: a model has no chat template to ask with.
    """
    found: dict[int, LeftOut] = {}
    for model, reader in readers.items():
        require_chat(model, reader)
        for place, prompt in enumerate(prompts):
            asked = rendered_ids(
                reader.tokenizer, question(reader.tokenizer, prompt.messages, prompt.carried)
            )
            if reason := _too_long(len(asked) + max_new_tokens, model, reader):
                found.setdefault(place, LeftOut(STOP_RATE, place, prompt.where, reason))
    return list(found.values())


def require_chat(model: str, reader: RequestReader) -> None:
    """Raises FoundryError unless there is a chat template."""
    if reader.tokenizer.chat_template is None:
        raise FoundryError(
            f"{model}: its tokenizer has no chat template to ask with; measure documents alone "
            "(tasks: [stdlib_bits_per_byte], num_stop_prompts: 0)"
        )


def _too_long(num_tokens: int, model: str, reader: RequestReader) -> str:
    if num_tokens <= reader.max_length:
        return ""
    return f"{num_tokens:,} tokens with its answer, more than the context of {model}, {reader.max_length:,}"


def say(left_out: Sequence[LeftOut], console: Any) -> None:
    """Name the first items that are left out, and count the rest."""
    for one in left_out[:NUM_SHOWN]:
        console.print(f"left out: {one.where}: {one.reason}", markup=False)
    if len(left_out) > NUM_SHOWN:
        console.print(f"left out: {len(left_out) - NUM_SHOWN:,} more; results.json names them")


def refuse(left_out: Sequence[LeftOut]) -> None:
    """Raises FoundryError with the first item that is left out, if there is one."""
    if left_out:
        first, others = left_out[0], len(left_out) - 1
        more = f" (and {others:,} more)" if others else ""
        raise FoundryError(
            f"{first.where}: {first.reason}{more}; too_long: leave_out measures all models without them"
        )
