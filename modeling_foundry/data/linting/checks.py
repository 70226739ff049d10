"""The checks of the chat linter: counts over rendered rows, and what each count means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

Status = Literal["PASS", "WARN", "FAIL"]
TruncationMode = Literal["keep_start", "keep_end"]


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, how it came out, in numbers."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Cut:
    """What training keeps of a sequence.

    Args:
        max_length: tokens; None keeps all.
        mode: TRL's ``truncation_mode``.
    """

    max_length: int | None = None
    mode: TruncationMode = "keep_start"

    @property
    def kept(self) -> slice:
        """The kept places."""
        if self.max_length is None:
            return slice(None)
        return slice(self.max_length) if self.mode == "keep_start" else slice(-self.max_length, None)

    def of(self, sequence: dict[str, Any]) -> tuple[list[int], list[int]]:
        """What is left of ids and mask."""
        return sequence["ids"][self.kept], sequence["mask"][self.kept]

    def __str__(self) -> str:
        if self.max_length is None:
            return "without max_length"
        return f"at max_length {self.max_length:,}" + ", keep_end" * (self.mode == "keep_end")


@dataclass
class Tally:
    """Counts over the rows; a preference row has two sequences, an SFT row one."""

    num_rows: int = 0
    num_refused: int = 0
    first_refusal: str = ""
    num_sequences: int = 0
    longest_characters: int = 0
    leading_bos: Counter[int] = field(default_factory=Counter)
    num_inner_bos: int = 0
    num_many_bos: int = 0
    num_untrained: int = 0
    num_answers: int = 0
    num_without_stop: int = 0
    num_cut: int = 0
    num_cut_whole: int = 0
    num_tokens_cut: int = 0
    num_trained_tokens: int = 0
    num_no_prefix: int = 0
    num_spelled: int = 0
    num_obeyed: int = 0
    num_same: int = 0
    num_same_when_cut: int = 0
    num_lost: int = 0
    first_lost: str = ""
    unread: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, answer: dict[str, Any], facts: dict[str, Any], cut: Cut) -> None:
        """Count one rendered row."""
        self.num_spelled += answer["spelled"]
        self.num_obeyed += answer["obeyed"]
        self.unread.update(answer["unread"])
        if answer["lost"]:
            self.num_lost += 1
            self.first_lost = self.first_lost or f"{name}: {answer['lost'][0]}"
        first, *others = answer["sequences"]
        self.num_same += any(other["ids"] == first["ids"] for other in others)
        self.num_same_when_cut += any(cut.of(other) == cut.of(first) for other in others)
        self.turns.update(first.get("turns", {}))
        for sequence in answer["sequences"]:
            self._add_sequence(sequence, facts, cut)
            # A BOS that a content spells is found by another check.
            if not (answer["obeyed"] or facts["bos"] is None or facts["bos_has_another_use"]):
                self._add_bos(sequence, facts["bos"])

    def _add_bos(self, sequence: dict[str, Any], bos: int) -> None:
        """Llama 2 writes BOS before every question; more than that is no policy of anyone's."""
        count = sequence["ids"].count(bos)
        self.num_inner_bos += count > _leading(sequence["ids"], bos)
        self.num_many_bos += count > max(1, sequence["questions"])

    def _add_sequence(self, sequence: dict[str, Any], facts: dict[str, Any], cut: Cut) -> None:
        ids, mask = sequence["ids"], sequence["mask"]
        self.num_sequences += 1
        self.num_no_prefix += not sequence["prefix"]
        self.longest_characters = max(self.longest_characters, sequence["characters"])
        self.leading_bos[_leading(ids, facts["bos"])] += 1
        trained, kept = sum(mask), sum(mask[cut.kept])
        self.num_trained_tokens += trained
        self.num_untrained += trained == 0
        self.num_cut += kept < trained
        self.num_cut_whole += trained > 0 and kept == 0
        self.num_tokens_cut += trained - kept
        stops = {int(id) for id in facts["stops"]}
        for answer in _answers(ids, mask):
            self.num_answers += 1
            # The last trained token, or the one before a line end that the template trains too.
            ends = answer[-2:] if answer[-1] in facts["line_ends"] else answer[-1:]
            self.num_without_stop += not stops & set(ends)


def _leading(ids: Sequence[int], bos: int | None) -> int:
    return next((place for place, id in enumerate(ids) if id != bos), len(ids))


def _answers(ids: Sequence[int], mask: Sequence[int]) -> list[list[int]]:
    """The trained tokens, one list for each unbroken run."""
    runs = groupby(zip(mask, ids, strict=True), key=lambda token: token[0])
    return [[id for _, id in run] for trained, run in runs if trained]


def checks_of(tally: Tally, facts: dict[str, Any], cut: Cut, by_mask: bool, is_pair: bool) -> list[Check]:
    """What the counts say.

    Args:
        facts: of the tokenizer (``template_renderer.facts_of``).
        by_mask: the template's ``{% generation %}`` says which tokens are learned.
        is_pair: a row has two sides.
    """
    checks = [_turns_in_text(tally), _keys_that_are_read(tally), _bos_policy(tally, facts)]
    if by_mask:
        checks.append(_generation_markers(facts))
    checks.append(_trained_tokens(tally))
    if by_mask and tally.num_trained_tokens:
        checks.append(_trained_turns(tally))
    if is_pair:
        checks.append(_pairs_differ(tally, cut))
    if tally.num_answers:
        checks += [_stop_is_trained(tally, facts), _cut_answers(tally, cut)]
    return [*checks, _prompt_is_prefix(tally), _control_tokens(tally)]


def every_row_renders(tally: Tally) -> Check:
    """Templates may refuse a conversation, as one with a system message."""
    if not tally.num_refused:
        return Check("every row renders", "PASS", f"{tally.num_rows:,} rows")
    detail = f"{tally.num_refused:,} of {tally.num_rows:,} rows do not; {tally.first_refusal}"
    return Check("every row renders", "FAIL", detail)


def _bos_policy(tally: Tally, facts: dict[str, Any]) -> Check:
    name, token = "one BOS policy", facts["bos_token"]
    counts = sorted(tally.leading_bos)
    if facts["bos"] is None:
        return Check(name, "PASS", "no BOS: the tokenizer has none")
    if len(counts) > 1:
        found = ", ".join(f"{tally.leading_bos[count]:,} begin with {count}" for count in counts)
        return Check(name, "FAIL", f"not one: of {tally.num_sequences:,} sequences {found} {token}")
    if counts[0] > 1:
        return Check(name, "FAIL", f"the template writes {counts[0]} {token} at the start; keep one")
    if tally.num_many_bos:
        detail = f"more {token} than questions in {tally.num_many_bos:,} of {tally.num_sequences:,} sequences; keep one"
        return Check(name, "FAIL", detail)
    if counts[0] == 1 and facts["adds_bos"]:
        detail = f"double: template and tokenizer both write {token}; set add_bos_token to false"
        return Check(name, "FAIL", detail)
    if facts["adds_bos"]:
        detail = f"training sees none, but tokenizer(text) adds {token}: prompt with chat templates only"
        return Check(name, "WARN", detail)
    if tally.num_inner_bos:
        inside = f"{tally.num_inner_bos:,} of {tally.num_sequences:,} sequences"
        detail = f"{token} stands inside {inside}, as Llama 2 has it"
        return Check(name, "WARN", detail)
    return Check(name, "PASS", f"one {token}, from the template" if counts[0] else "no BOS")


def _generation_markers(facts: dict[str, Any]) -> Check:
    if facts["generation"]:
        return Check("{% generation %} in the template", "PASS", "present")
    detail = (
        "missing, so no token counts as the assistant's; write {% generation %} before an answer and "
        "{% endgeneration %} after its end-of-turn token"
    )
    return Check("{% generation %} in the template", "FAIL", detail)


def _trained_tokens(tally: Tally) -> Check:
    missing = tally.num_untrained
    detail = f"{missing:,} of {tally.num_sequences:,} sequences have none"
    if not missing:
        detail = f"{tally.num_trained_tokens:,} in {tally.num_sequences:,} sequences"
    return Check("trained tokens in every row", "FAIL" if missing else "PASS", detail)


def _trained_turns(tally: Tally) -> Check:
    name, turns = "answers alone are trained", tally.turns
    if turns["others_trained"]:
        detail = (
            f"{turns['others_trained']:,} other turns are, too; {{% generation %}} belongs around answers"
        )
        return Check(name, "FAIL", detail)
    if turns["not_trained"] or turns["blank"]:
        detail = (
            f"of {turns['answers']:,} answers {turns['not_trained']:,} are not, {turns['blank']:,} are empty"
        )
        return Check(name, "WARN", detail)
    return Check(name, "PASS", f"{turns['answers']:,} answers")


def _turns_in_text(tally: Tally) -> Check:
    name = "turns, calls and tools in the text"
    if not tally.num_lost:
        return Check(name, "PASS", "none is missing")
    detail = (
        f"{tally.num_lost:,} of {tally.num_rows:,} rows have some of which the template writes nothing, first "
        f"{tally.first_lost}; give a template that reads every role, tools and tool_calls"
    )
    return Check(name, "FAIL", detail)


def _keys_that_are_read(tally: Tally) -> Check:
    name = "keys that are read"
    if not tally.unread:
        return Check(name, "PASS", "the template reads every key of the messages")
    found = ", ".join(f"{key} (of {count:,} rows)" for key, count in tally.unread.most_common())
    return Check(name, "WARN", f"the template writes nothing of {found}: it is not learned")


def _pairs_differ(tally: Tally, cut: Cut) -> Check:
    """From a pair that is the same on both sides nothing is learned; where most are, the file is another's."""
    name, same, rows = "chosen is not rejected", tally.num_same_when_cut, tally.num_sequences // 2
    if not same:
        return Check(name, "PASS", f"in all {rows:,} pairs")
    by_cut = same - tally.num_same
    detail = f"{same:,} of {rows:,} pairs are the same tokens on both sides"
    detail += f", {by_cut:,} of them only when cut {cut}" * (by_cut > 0)
    return Check(name, "FAIL" if 2 * same > rows else "WARN", detail)


def _stop_is_trained(tally: Tally, facts: dict[str, Any]) -> Check:
    stops = " or ".join(facts["stops"].values()) or "any stop token: the tokenizer has no eos_token"
    missing = tally.num_without_stop
    detail = f"{missing:,} of {tally.num_answers:,} answers do not end with {stops}"
    if not missing:
        detail = f"each of {tally.num_answers:,} answers ends with {stops}"
    return Check("stop token in the loss", "FAIL" if missing else "PASS", detail)


def _cut_answers(tally: Tally, cut: Cut) -> Check:
    if not tally.num_cut:
        return Check("answers not cut", "PASS", f"none {cut}")
    detail = (
        f"{tally.num_cut:,} of {tally.num_sequences:,} are {cut}, "
        f"{tally.num_cut_whole:,} of them wholly; {tally.num_tokens_cut:,} of "
        f"{tally.num_trained_tokens:,} trained tokens are lost"
    )
    nothing_left = tally.num_tokens_cut == tally.num_trained_tokens
    return Check("answers not cut", "FAIL" if nothing_left else "WARN", detail)


def _prompt_is_prefix(tally: Tally) -> Check:
    name, missing = "prompt is a prefix", tally.num_no_prefix
    if not missing:
        return Check(name, "PASS", f"in all {tally.num_sequences:,} sequences")
    detail = (
        f"not in {missing:,} of {tally.num_sequences:,}: generation starts from other tokens than training"
    )
    return Check(name, "FAIL" if missing == tally.num_sequences else "WARN", detail)


def _control_tokens(tally: Tally) -> Check:
    name = "control tokens in contents"
    if not tally.num_spelled:
        return Check(name, "PASS", f"spelled in 0 of {tally.num_rows:,} rows")
    detail = f"spelled in {tally.num_spelled:,} of {tally.num_rows:,} rows, "
    if not tally.num_obeyed:
        return Check(name, "PASS", detail + "written as text by the template")
    return Check(name, "WARN", detail + f"and real control tokens in {tally.num_obeyed:,}")
