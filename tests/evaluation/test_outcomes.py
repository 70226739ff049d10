"""What lm-eval wrote, read back item by item."""

import json

from modeling_foundry.evaluation.outcomes import read_outcomes

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
