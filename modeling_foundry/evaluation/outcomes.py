"""What each model did on each item, read from lm-eval's logged samples."""

from __future__ import annotations

import glob
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_lines
from ..settings import FoundryError

RATES = ("acc", "acc_norm", "acc_bytes", "exact_match")
# Logged as (log-likelihood in nats, number of bytes or words): compared as bits of each, which add up.
PER_UNIT = {"bits_per_byte": "bits_per_byte", "word_perplexity": "bits_per_word"}
SAME_AS_ANOTHER = ("byte_perplexity",)  # 2 to the bits per byte
PER_ANSWER = {"perplexity": "bits_per_answer"}  # logged as the log-likelihood of the answer


@dataclass(frozen=True)
class Outcomes:
    """One model's outcomes on the items of one metric; the score is ``sum(totals) / sum(weights)``.

    Args:
        totals: outcome of each item: 0 or 1, an F1, or the bits of a document.
        weights: 1 each, or the bytes of each document.
        groups: items of one group are not independent (functions of one family of modules).
        documents: what was asked, to pair two models item by item.
        is_rate: the metric counts hits, however the items came out (an F1 of all zeros is no rate).
    """

    totals: np.ndarray
    weights: np.ndarray
    groups: tuple[str, ...]
    documents: tuple[str, ...]
    higher_is_better: bool = True
    is_rate: bool = True

    @property
    def is_binary(self) -> bool:
        """Whether each item is a hit or a miss."""
        return self.is_rate and bool(np.isin(self.totals, (0, 1)).all() and (self.weights == 1).all())


def read_outcomes(folder: Path, others: list[str] | None = None) -> dict[str, Outcomes]:
    """``task/metric`` -> outcomes, from a folder that ``lm_eval run --log_samples`` wrote.

    Args:
        others: gets the names of metrics that are no means over items, which two models cannot be paired by.

    Raises:
        FoundryError: a file is missing, torn, or not what lm-eval writes.
    """
    results = _only(folder, "results_*.json")
    content = _parsed(results, results.read_text(encoding="utf-8"))
    tasks, better = content.get("configs"), content.get("higher_is_better")  # configs has no groups
    if not isinstance(tasks, dict) or not isinstance(better, dict):
        raise _spoiled(results, folder)
    outcomes: dict[str, Outcomes] = {}
    for task in sorted(tasks):
        # With a year: samples_mbpp_64_... is another task's.
        path = _only(folder, f"samples_{glob.escape(task)}_[0-9][0-9][0-9][0-9]-*.jsonl")
        samples = [_parsed(path, line) for line in read_lines(path)]
        try:
            for name, own in _by_filter(task, samples).items():
                found, unlike = _outcomes_of_task(name, own, better[task])
                _require_finite(folder.name, found)
                outcomes |= found
                (others if others is not None else []).extend(unlike)
        except (KeyError, TypeError, IndexError) as error:
            raise _spoiled(path, folder) from error
    return outcomes


def num_parameters(folder: Path) -> int | None:
    """Parameters of the model, as lm-eval counted them; None where it did not."""
    results = _only(folder, "results_*.json")
    return _parsed(results, results.read_text(encoding="utf-8")).get("config", {}).get("model_num_parameters")


def group_of(document: dict[str, Any], otherwise: str) -> str:
    """Top-level module of an item: the data are held out by it (``urllib`` with all of ``urllib.*``)."""
    return str(document["module"]).split(".")[0] if "module" in document else otherwise


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise FoundryError(
            f"{folder}: expected one {pattern}, found {len(found)}; remove the folder and run again"
        )
    return found[0]


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FoundryError(f"{path}: not valid JSON; remove {path.parent} and run again") from error
    if not isinstance(value, dict):
        raise FoundryError(f"{path}: not a JSON object; remove {path.parent} and run again")
    return value


def _spoiled(path: Path, folder: Path) -> FoundryError:
    return FoundryError(f"{path}: not what lm_eval writes; remove {folder} and run again")


def _by_filter(task: str, samples: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Samples by the filter that read the answers: lm-eval logs every item once for each of a task's filters."""
    by_filter: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        by_filter.setdefault(sample.get("filter", "none"), []).append(sample)
    return {task if len(by_filter) == 1 else f"{task} ({name})": own for name, own in by_filter.items()}


def _outcomes_of_task(
    task: str, samples: list[dict[str, Any]], better: dict[str, bool]
) -> tuple[dict[str, Outcomes], list[str]]:
    documents = tuple(sample["doc_hash"] for sample in samples)
    groups = tuple(group_of(sample["doc"], sample["doc_hash"]) for sample in samples)
    outcomes, unlike = {}, []
    for metric in samples[0]["metrics"]:
        if metric in SAME_AS_ANOTHER:
            continue
        name, totals, weights, higher = _values_of(metric, [sample[metric] for sample in samples], better)
        if totals is None:
            unlike.append(f"{task}/{name}")
            continue
        outcomes[f"{task}/{name}"] = Outcomes(
            totals, weights, groups, documents, higher, is_rate=metric in RATES
        )
    return outcomes, unlike


def _require_finite(model: str, outcomes: dict[str, Outcomes]) -> None:
    """Raises FoundryError with the first item whose score is no number: it would become one with everything."""
    for metric, one in outcomes.items():
        if not np.isfinite(one.totals).all():
            place = int(np.flatnonzero(~np.isfinite(one.totals))[0])
            raise FoundryError(
                f"{model}: {metric}: {one.totals[place]} at the {place + 1}. of {len(one.totals)} items; "
                "the model's logits there are no finite numbers"
            )


def _values_of(
    metric: str, values: list[Any], better: dict[str, bool]
) -> tuple[str, np.ndarray | None, np.ndarray, bool]:
    """Name, totals, weights and direction of a metric; no totals where it is no mean over items (an F1 of classes)."""
    weights = np.ones(len(values))
    if metric in PER_UNIT:
        totals, weights = np.asarray(values, dtype=float).T
        return PER_UNIT[metric], -totals / math.log(2), weights, False
    if metric in PER_ANSWER:
        return PER_ANSWER[metric], -np.asarray(values, dtype=float) / math.log(2), weights, False
    if not all(isinstance(value, (int, float)) for value in values):
        return metric, None, weights, True
    return metric, np.asarray(values, dtype=float), weights, bool(better[metric])
