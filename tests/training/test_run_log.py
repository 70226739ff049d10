"""The log file: whole lines, each step once, whatever a run died of."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log.log_file import LogFile, read_log, series, summary_of


def test_a_fresh_file_and_its_folder_are_made(tmp_path):
    log = LogFile(tmp_path / "run" / "log.jsonl")
    assert log.go_on_after(0) == []
    log.append({"event": "train", "step": 1, "loss": 2.0})
    log.sync()
    assert read_log(tmp_path / "run") == [{"event": "train", "step": 1, "loss": 2.0}]


def test_a_line_may_hold_what_unicode_calls_a_line_end(tmp_path):
    """A run of such a name could not be plotted, and lost its first line when it was resumed."""
    log, line = LogFile(tmp_path / "log.jsonl"), {"event": "start", "step": 0, "run_name": "a\u2028b\u0085c"}
    log.append(line)
    assert read_log(tmp_path) == [line]
    assert log.go_on_after(1) == [line]


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_a_cut_log_goes_on_with_every_step_once(tmp_path_factory, cut_bytes, resumed_step, data):
    """Cut anywhere, resumed at any checkpoint: lines up to it stay as they were, later ones come once."""
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    log, whole = LogFile(path), [{"event": "train", "step": step, "loss": 1 / step} for step in range(1, 13)]
    for line in whole:
        log.append(line)
    text = path.read_text()
    last_kept = sum(len(line) + 1 for line in text.splitlines()[:resumed_step])
    path.write_text(text[: data.draw(st.integers(last_kept, len(text)))])
    assert log.go_on_after(resumed_step) == whole[:resumed_step]
    for line in whole[resumed_step:]:
        log.append(line)
    assert path.read_text() == text


def test_the_end_of_an_interrupted_finish_is_dropped(tmp_path):
    log = LogFile(tmp_path / "log.jsonl")
    for line in ({"event": "train", "step": 4}, {"event": "end", "step": 4}):
        log.append(line)
    assert [line["event"] for line in log.go_on_after(4)] == ["train"]


def test_damage_inside_a_log_is_told(tmp_path, caplog):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n{"st')
    with pytest.raises(FoundryError, match=r"log.jsonl:2: not a line of a run log"):
        read_log(tmp_path)
    assert LogFile(tmp_path / "log.jsonl").go_on_after(2) == [{"step": 1}, {"step": 2}]
    assert "log.jsonl:2: not a line of a run log" in caplog.text


@pytest.mark.parametrize(
    "line",
    ['{"step": 1, "loss": "x"}', '{"step": 1, "run_name": ["a"]}', '{"step": 0, "config": null}',
     '{"step": 0, "hardware": "cpu"}', "[" * 100_000],
    ids=["loss", "name", "config", "hardware", "depth"],
)  # fmt: skip
def test_other_kinds_under_known_names_are_damage(line, tmp_path):
    """They once ended ``plot`` with a traceback."""
    (tmp_path / "log.jsonl").write_text(f'{line}\n{{"step": 2, "loss": null}}\n')
    with pytest.raises(FoundryError, match=r"log.jsonl:1: not a line of a run log"):
        read_log(tmp_path)


def test_a_run_without_a_log_is_one_line(tmp_path):
    with pytest.raises(FoundryError, match="cannot read a run log; give a run folder with log.jsonl"):
        read_log(tmp_path)


def test_json_has_no_word_for_infinity(tmp_path):
    log = LogFile(tmp_path / "log.jsonl")
    log.append({"step": 1, "loss": float("inf"), "grad_layer_norms": [1.0, float("nan")]})
    text = log.path.read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "grad_layer_norms": [1.0, None]}


def test_a_series_holds_numbers_only():
    lines = [{"step": 1, "mfu": None}, {"step": 2, "mfu": 0.5}, {"step": 3, "mfu": "x"}, {"mfu": 0.6}]
    assert series(lines, "mfu") == ([2], [0.5])


def test_a_summary_says_only_what_was_measured():
    summary = summary_of([{"step": 1, "loss": 3.0, "mfu": None, "event": "train"}])
    assert summary == {
        "num_evaluations": 0, "num_checkpoints": 0, "num_resumes": 0, "final_step": 1, "final_train_loss": 3.0,
    }  # fmt: skip
