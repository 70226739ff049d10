"""OpenAssistant's message trees as conversations: from each root along the best-ranked answers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..samples.conversations import (
    ROLES,
    MalformedRowError,
    Reason,
    Row,
    Sample,
    conversation,
    kind_in_words,
    optional_text_of,
    text_of,
)


@dataclass(frozen=True)
class LeftOut:
    """A row that is sound but not wanted."""

    reason: str


Outcome = Sample | MalformedRowError | LeftOut


@dataclass(frozen=True)
class TreeMessage:
    """One message of a tree; deleted and malformed ones stay as places, so that what follows them is known."""

    number: int
    identity: str
    parent: str | None
    turn: tuple[str, str]
    language: str
    rank: float
    deleted: bool
    error: MalformedRowError | None = None

    @property
    def usable(self) -> bool:
        return not self.deleted and self.error is None


Children = dict[str | None, list[TreeMessage]]


def threads(rows: Iterable[tuple[int, Row]], language: str | None = None) -> Iterator[tuple[int, Outcome]]:
    """One conversation a root prompt, and what is malformed or not wanted, each with its row number.

    Where replies compete the one ranked best (0) is followed; unranked ones come after ranked ones, in the
    order of the file.  A thread ends with its last answer.

    Args:
        language: only trees whose root is in this language, as ``en`` or ``pt-BR``.
    """
    messages: dict[str, TreeMessage] = {}
    for number, row in rows:
        try:
            message = _read(number, row)
            if message.identity in messages:
                raise MalformedRowError(Reason.ID_TWICE, message.identity)
        except MalformedRowError as error:
            yield number, error
            continue
        messages[message.identity] = message
        if message.error is not None:
            yield number, message.error
        elif message.deleted:
            yield number, LeftOut("deleted")
    children: Children = defaultdict(list)
    for message in messages.values():
        children[message.parent].append(message)
    for root in children[None]:
        if root.usable:
            yield root.number, _thread(root, children, language)
    yield from _unreached(messages, children)


def _read(number: int, row: Row) -> TreeMessage:
    """A message with its place in the tree; raises only where the place itself cannot be known."""
    error, turn = None, ("", "")
    try:
        turn = (text_of(row, "role"), text_of(row, "text"))
        if turn[0] not in ROLES:
            raise MalformedRowError(Reason.UNKNOWN_ROLE, turn[0])
    except MalformedRowError as raised:
        error = raised
    rank = row.get("rank")
    if rank is not None and not isinstance(rank, (int, float)):
        error = MalformedRowError(Reason.WRONG_TYPE, f"rank is {kind_in_words(rank)}, not a number")
        rank = None
    deleted = bool(row.get("deleted"))
    return TreeMessage(
        number=number,
        identity=text_of(row, "message_id"),
        parent=optional_text_of(row, "parent_id") or None,
        turn=turn,
        language=optional_text_of(row, "lang"),
        rank=math.inf if rank is None or math.isnan(rank) else rank,  # Parquet of pandas has NaN for none
        deleted=deleted,
        error=None if deleted else error,
    )


def _thread(root: TreeMessage, children: Children, language: str | None) -> Outcome:
    if language is not None and root.language != language:
        return LeftOut("thread in another language")
    turns, node = [], root
    while True:
        turns.append(node.turn)
        replies = [reply for reply in children.get(node.identity, []) if reply.usable]
        if not replies:
            break
        node = min(replies, key=lambda reply: (reply.rank, reply.number))
    if ROLES[turns[-1][0]] == "user":
        turns.pop()
    try:
        return {"messages": conversation(turns)}
    except MalformedRowError as error:
        return error


def _unreached(messages: dict[str, TreeMessage], children: Children) -> Iterator[tuple[int, Outcome]]:
    """The sound messages that no thread can hold: one above them is not used, or no root leads to them."""
    waiting, reached = list(children[None]), set[str]()
    lost: set[str] = set()
    while waiting:
        message = waiting.pop()
        reached.add(message.identity)
        if message.identity in lost or not message.usable:
            lost.update(reply.identity for reply in children.get(message.identity, []))
        waiting += children.get(message.identity, [])
    faults: dict[str, MalformedRowError] = {}
    for message in messages.values():
        if message.usable and message.identity in lost:
            yield message.number, LeftOut("below a message that is not used")
        elif message.usable and message.identity not in reached:
            yield message.number, _why_unreached(message, messages, faults)


def _why_unreached(
    message: TreeMessage, messages: dict[str, TreeMessage], faults: dict[str, MalformedRowError]
) -> MalformedRowError:
    """Why no root leads to a message; ``faults`` remembers it for every message on the way up."""
    passed: dict[str, None] = {}
    node = message
    while node.identity not in faults:
        if node.identity in passed:
            fault = MalformedRowError(Reason.CYCLE, node.identity)
            break
        passed[node.identity] = None
        if node.parent not in messages:
            fault = MalformedRowError(Reason.NO_PARENT, str(node.parent))
            break
        node = messages[node.parent]
    else:
        fault = faults[node.identity]
    faults.update(dict.fromkeys(passed, fault))
    return fault
