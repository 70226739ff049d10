"""Which of several answers is the likeliest: their log-probabilities alone, and their bytes alone.

This file imports nothing of the package, so the tasks also run where only lm-eval and a checkpoint are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask


class ChoiceTask(ConfigurableTask):
    """Log-probabilities of the answers alone, and of their bytes alone.

    A prompt ends with what the chat template writes before an answer, mostly ``assistant`` and a newline.  lm-eval
    moves blanks from the end of a prompt into every answer, where they cost 5 to 9 nats which no answer decides.
    So the prompt is cut where its tokens allow it, what lies between is asked for once, and taken off; where the
    tokens of an answer begin before it does (``Assistant: `` and ``Yes`` are ``: Yes``), what lies between is scored
    with every answer, and its bytes count too.  An answer that ends its turn is asked for without the end as well:
    the control token has no bytes.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        own = {"process_results": score_choices}  # lm-eval must not look for our metrics among its own
        super().__init__(config={key: value for key, value in (config or {}).items() if key != "class"} | own)
        self._between: dict[int, tuple[str, bool]] = {}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Every choice; each without the end of its turn where it has one; what stands between prompt and answer."""
        apply, chat_template = kwargs.pop("apply_chat_template", False), kwargs.pop("chat_template", None)
        encode = getattr(
            getattr(chat_template, "__self__", None), "tok_encode", None
        )  # the model being measured
        prompt = ctx if apply else ctx + self.config.target_delimiter
        head, between, apart = cut_prompt(prompt, doc["choices"], encode)
        self._between[doc["line"]] = (between, apart)
        texts = [*doc["choices"], *(bare for bare in bare_choices(doc) if doc.get("end_of_turn"))]
        parts = [between + text for text in texts] + [between] * bool(between and apart)
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(head, part), idx=index, **kwargs)
            for index, part in enumerate(parts)
        ]

    def process_results(self, doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
        """The metrics of one document, from the log-probabilities of its answers alone."""
        between, apart = self._between[doc["line"]]
        sums = [loglikelihood for loglikelihood, _ in results]
        if between and apart:
            *sums, taken_off = sums
            sums = [total - taken_off for total in sums]
        scores = score_choices(doc, sums, 0 if apart else len(between.encode()))
        return {name: score for name, score in scores.items() if name in self._metric_fn_list}


def cut_prompt(
    prompt: str, choices: list[str], encode: Callable[[str], list[int]] | None
) -> tuple[str, str, bool]:
    """The prompt up to where a token ends and no blank stands, the rest of it, and whether answers are tokens apart.

    Args:
        encode: text to token ids; None: not known, so blanks are taken for a part of the answers' tokens.
    """
    if encode is None:
        head = prompt.rstrip()
        return head, prompt[len(head) :], head == prompt
    ids, wholes = encode(prompt), [encode(prompt + choice) for choice in choices]
    apart = all(whole[: len(ids)] == ids for whole in wholes)
    if apart:
        wholes.append(ids)
    for end in range(len(prompt), 0, -1):
        if prompt[end - 1].isspace():
            continue
        ids = encode(prompt[:end])
        if all(whole[: len(ids)] == ids for whole in wholes):
            return prompt[:end], prompt[end:], apart
    raise ValueError(f"no token of the prompt {prompt[:60]!r} ends before the answer begins")


def bare_choices(document: dict[str, Any]) -> list[str]:
    """The choices without the end of the turn that is a control token."""
    return [text.removesuffix(document.get("end_of_turn", "")) for text in document["choices"]]


def score_choices(document: dict[str, Any], sums: list[float], more_bytes: int = 0) -> dict[str, float]:
    """``acc``: the true answer has the highest log-probability; ``acc_norm``: the highest per UTF-8 byte.

    ``margin``: log-probability of the first answer above that of the second, in nats.  A tie is not a hit, so a
    model that cannot tell answers apart does not win by their order.

    Args:
        sums: nats of every choice, then, where the document has an ``end_of_turn``, of every choice without it.
        more_bytes: that were scored with every answer.
    """
    label, bare = document["label"], bare_choices(document)
    whole, alone = sums[: len(bare)], sums[-len(bare) :]
    per_byte = [total / (len(text.encode()) + more_bytes) for total, text in zip(alone, bare, strict=True)]
    return {"acc": wins(whole, label), "acc_norm": wins(per_byte, label), "margin": whole[0] - whole[1]}


def wins(scores: list[float], label: int) -> float:
    """1.0 where the score at ``label`` is above every other."""
    return float(all(scores[label] > score for place, score in enumerate(scores) if place != label))
