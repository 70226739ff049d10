"""The documents and metrics of eval_tasks/."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPOSITORY

TASK_DIR = REPOSITORY / "eval_tasks"
YAMLS = sorted(TASK_DIR.glob("*.yaml"))


def load_module():
    spec = importlib.util.spec_from_file_location("standard_library", TASK_DIR / "standard_library.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tasks = load_module()
words = st.text(alphabet="abcé_ .9", max_size=30)


@pytest.fixture
def data(data_dir, monkeypatch):
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(data_dir))
    return data_dir


class Loader(yaml.SafeLoader):
    """Reads a task file without running its functions."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_task_file_has_a_version_and_names_existing_functions(path):
    content = yaml.load(path.read_text(), Loader=Loader)
    assert content["metadata"]["version"] >= 1
    for value in content.values():
        if isinstance(value, str) and value.startswith("standard_library."):
            assert callable(getattr(tasks, value.split(".")[1]))
    for metric in content.get("metric_list", []):
        assert {"metric", "aggregation", "higher_is_better"} <= set(metric)


def test_lm_eval_finds_the_tasks():
    command = [
        sys.executable,
        "-m",
        "modeling_foundry.evaluation.harness",
        "validate",
        "--only_included_tasks",
    ]
    names = "stdlib," + ",".join(path.stem for path in YAMLS)
    answer = subprocess.run(
        [*command, "--include_path", str(TASK_DIR), "--tasks", names], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "All tasks found and valid" in answer.stdout


def test_choices_hold_the_truth_once_among_real_summaries_of_like_length(data):
    documents = list(tasks.load_choices()["test"])
    real = {document["answer"] for document in documents}
    lengths = sorted(map(len, real))
    for document in documents:
        assert len(set(document["choices"])) == tasks.NUM_CHOICES
        assert document["choices"][document["label"]] == document["answer"]
        assert set(document["choices"]) <= real
        for text in document["choices"]:
            between = sum(
                min(len(text), len(document["answer"])) < length < max(len(text), len(document["answer"]))
                for length in lengths
            )
            assert between <= tasks.NUM_NEIGHBOURS
    labels = Counter(document["label"] for document in documents)
    assert len(labels) == tasks.NUM_CHOICES  # the truth is not always in one place


def test_choices_do_not_depend_on_the_order_of_the_file(data, tmp_path, monkeypatch):
    here = {document["prompt"]: document["choices"] for document in tasks.load_choices()["test"]}
    lines = (data / "sft_heldout.jsonl").read_text().splitlines()
    (tmp_path / "sft_heldout.jsonl").write_text("\n".join(reversed(lines)))
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    assert {document["prompt"]: document["choices"] for document in tasks.load_choices()["test"]} == here


def test_preference_answers_end_their_turn(data):
    documents = list(tasks.load_preferences()["test"])
    assert len(documents) == 48
    assert all(text.endswith("<|im_end|>") for document in documents for text in document["choices"])


def test_sum_and_per_byte_can_disagree():
    """The true answer is twice as long and less likely in sum, more likely per byte."""
    document = {"choices": ["abcdefgh<|im_end|>", "abcd<|im_end|>"], "label": 0}
    assert tasks.score_choices(document, [(-6.0, False), (-4.0, False)]) == {"acc": 0.0, "acc_norm": 1.0}
    assert tasks.score_choices(document, [(-3.0, False), (-4.0, False)]) == {"acc": 1.0, "acc_norm": 1.0}


def test_margin_is_the_difference_of_the_sums_in_nats():
    document = {"choices": ["ab<|im_end|>", "cd<|im_end|>"], "label": 0}
    assert tasks.score_preference(document, [(-6.5, False), (-4.0, False)])["margin"] == -2.5


def test_a_tie_is_not_a_hit():
    document = {"choices": ["ab", "cd"], "label": 0}
    assert tasks.score_choices(document, [(-4.0, False), (-4.0, False)]) == {"acc": 0.0, "acc_norm": 0.0}


def test_token_f1_by_hand():
    # Precision 2/3, recall 2/4: 2 * (2/3 * 1/2) / (2/3 + 1/2).
    assert tasks.token_f1("Return the list.", "return the sum value") == pytest.approx(4 / 7)
    assert tasks.token_f1("", "something") == 0.0


@given(words, words)
def test_token_f1_is_symmetric_and_one_only_for_the_same_words(first, second):
    score = tasks.token_f1(first, second)
    assert score == pytest.approx(tasks.token_f1(second, first))
    assert 0 <= score <= 1
    same = Counter(tasks.re.findall(r"\w+", first.lower())) == Counter(
        tasks.re.findall(r"\w+", second.lower())
    )
    if score == 1:
        assert same


def test_a_missing_folder_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="FOUNDRY_DATA_DIR"):
        tasks.load_texts()


def test_a_torn_line_is_named(tmp_path, monkeypatch):
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"module": "a", "text": "b"}) + '\n{"module": "to')
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"heldout\.jsonl:2: not a JSON object"):
        tasks.load_texts()
