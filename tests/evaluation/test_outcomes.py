"""What lm-eval wrote, read back item by item."""

import json
import math

import pytest

from modeling_foundry.evaluation.outcomes import read_outcomes
from modeling_foundry.settings import FoundryError

DATE = "2026-01-02T03-04-05.678901.jsonl"


def write_samples(folder, answers: dict[str, list[str]]) -> None:
    """A folder as ``lm_eval run --log_samples`` leaves it."""
    better = {task: {"token_f1": True} for task in answers}
    results = {"configs": {task: {} for task in answers}, "higher_is_better": better}
    (folder / f"results_{DATE.removesuffix('l')}").write_text(json.dumps(results))
    for task, texts in answers.items():
        rows = [
            {"doc_hash": str(number), "doc": {"module": "m"}, "resps": [[text]], "metrics": ["token_f1"]}
            | {"token_f1": 0.5}
            for number, text in enumerate(texts)
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"samples_{task}_{DATE}").write_text("".join(lines), encoding="utf-8")


def test_an_answer_may_hold_unicodes_own_line_ends(tmp_path):
    write_samples(tmp_path, {"summary": ["one\u2028two\u2029three", "\x85", "a\rb\nc"]})
    assert len(read_outcomes(tmp_path)["summary/token_f1"].totals) == 3


def test_a_task_whose_name_goes_on_with_a_number_is_another_task(tmp_path):
    write_samples(tmp_path, {"summary": ["a"], "summary_64": ["a", "b"]})
    counts = {name: len(one.totals) for name, one in read_outcomes(tmp_path).items()}
    assert counts == {"summary/token_f1": 1, "summary_64/token_f1": 2}


def write_task(folder, metrics: dict[str, list], better: bool | None, filters=("none",)) -> None:
    """One task ``t`` of some metrics; an item once for each filter."""
    results = {"configs": {"t": {}}, "higher_is_better": {"t": dict.fromkeys(metrics, better)}}
    (folder / f"results_{DATE.removesuffix('l')}").write_text(json.dumps(results))
    num_items = len(next(iter(metrics.values())))
    rows = [
        {"doc_hash": str(item), "doc": {}, "metrics": list(metrics), "filter": name}
        | {
            metric: values[item] + place if isinstance(values[item], int) else values[item]
            for metric, values in metrics.items()
        }
        for place, name in enumerate(filters)
        for item in range(num_items)
    ]
    (folder / f"samples_t_{DATE}").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_filters_are_metrics_of_their_own_and_not_twice_as_many_items(tmp_path):
    write_task(tmp_path, {"exact_match": [0, 0, 0]}, True, ("strict", "loose"))
    found = read_outcomes(tmp_path)
    means = {name: (one.totals.mean(), len(one.totals)) for name, one in found.items()}
    assert means == {"t (strict)/exact_match": (0, 3), "t (loose)/exact_match": (1, 3)}


def test_a_class_and_a_prediction_are_no_nats_and_bytes(tmp_path):
    write_task(tmp_path, {"acc": [0, 1, 0], "f1": [[1, 0], [1, 1], [0, 1]]}, True)
    others = []
    assert list(read_outcomes(tmp_path, others)) == ["t/acc"]
    assert others == ["t/f1"]


@pytest.mark.parametrize(
    ("metric", "values", "name", "score"),
    [
        ("word_perplexity", [[-math.log(2) * 6, 2], [-math.log(2) * 6, 4]], "t/bits_per_word", 2.0),
        ("bits_per_byte", [[-math.log(2) * 6, 2], [-math.log(2) * 6, 4]], "t/bits_per_byte", 2.0),
        ("perplexity", [-math.log(2) * 3, -math.log(2) * 5], "t/bits_per_answer", 4.0),
    ],
)
def test_perplexities_are_bits_of_which_fewer_are_better(tmp_path, metric, values, name, score):
    write_task(tmp_path, {metric: values}, False)
    (one,) = (found := read_outcomes(tmp_path)).values()
    assert list(found) == [name]
    assert one.totals.sum() / one.weights.sum() == pytest.approx(score)
    assert not one.higher_is_better


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_named_and_not_averaged(tmp_path, value):
    write_task(tmp_path, {"token_f1": [0.5, value, 0.5]}, True)
    with pytest.raises(FoundryError, match=r"t/token_f1: (nan|inf) at the 2\. of 3 items"):
        read_outcomes(tmp_path)


def test_a_task_whose_name_is_a_pattern_is_read(tmp_path):
    write_samples(tmp_path, {"sum[a-z]*": ["a"], "suma": ["a", "b"]})
    counts = {name: len(one.totals) for name, one in read_outcomes(tmp_path).items()}
    assert counts == {"sum[a-z]*/token_f1": 1, "suma/token_f1": 2}
