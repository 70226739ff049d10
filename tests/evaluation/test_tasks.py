"""The documents and metrics of eval_tasks/."""

import importlib.util
import json
import sys
from collections import Counter

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests import warm_start
from tests.conftest import REPOSITORY

TASK_DIR = REPOSITORY / "eval_tasks"
YAMLS = sorted(TASK_DIR.glob("*.yaml"))


def load_module(name: str):
    spec = importlib.util.spec_from_file_location(name, TASK_DIR / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tasks, choices = load_module("standard_library"), load_module("choice_task")
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
        if isinstance(value, str) and value.startswith(("standard_library.", "choice_task.")):
            module, name = value.split(".")
            assert callable(getattr({"standard_library": tasks, "choice_task": choices}[module], name))
    for metric in content.get("metric_list", []):
        assert {"metric", "aggregation", "higher_is_better"} <= set(metric)


@pytest.mark.slow
def test_lm_eval_finds_the_tasks():
    command = [
        sys.executable,
        "-m",
        "modeling_foundry.evaluation.harness",
        "validate",
        "--only_included_tasks",
    ]
    names = "stdlib," + ",".join(path.stem for path in YAMLS)
    answer = warm_start.run([*command, "--include_path", str(TASK_DIR), "--tasks", names])
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
    document = {"choices": ["abcdefgh", "abcd"], "label": 0}
    assert choices.score_choices(document, [-6.0, -4.0]) == {"acc": 0.0, "acc_norm": 1.0, "margin": -2.0}
    assert choices.score_choices(document, [-3.0, -4.0]) == {"acc": 1.0, "acc_norm": 1.0, "margin": 1.0}


def test_the_end_of_a_turn_counts_in_the_sum_and_not_per_byte():
    """The end costs the true answer 9 nats: it loses by the sum, and its 2 bytes win by the answer alone."""
    document = {"choices": ["ab<|im_end|>", "cd<|im_end|>"], "label": 0, "end_of_turn": "<|im_end|>"}
    scores = choices.score_choices(document, [-10.0, -4.0, -1.0, -2.0])
    assert scores == {"acc": 0.0, "acc_norm": 1.0, "margin": -6.0}


def test_bytes_scored_with_every_answer_are_divided_too():
    document = {"choices": ["abcdefgh", "a"], "label": 0}
    assert choices.score_choices(document, [-6.0, -1.2], more_bytes=1)["acc_norm"] == 0.0  # -6/9 and -1.2/2
    assert choices.score_choices(document, [-6.0, -1.2])["acc_norm"] == 1.0  # -6/8 and -1.2/1


def test_a_tie_is_not_a_hit():
    document = {"choices": ["ab", "cd"], "label": 0}
    assert choices.score_choices(document, [-4.0, -4.0]) == {"acc": 0.0, "acc_norm": 0.0, "margin": 0.0}


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
        tasks.load_summaries()
    with pytest.raises(
        FileNotFoundError, match="tokenize does not: name JSON lines with text.* by heldout_file"
    ):
        tasks.load_texts()


SUMMARY = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {
    "prompt": SUMMARY["messages"][:1],
    "chosen": SUMMARY["messages"][1:],
    "rejected": SUMMARY["messages"][1:],
}
EMPTY = [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("load", "name", "rows", "message"),
    [
        (
            "load_texts",
            "heldout",
            ['{"text": "b"}', '{"module": "to'],
            r"heldout\.jsonl:2: not a JSON object",
        ),
        ("load_texts", "heldout", ["", " "], r"heldout\.jsonl: holds no rows"),
        ("load_texts", "heldout", ['"text"'], r"heldout\.jsonl:1: expected a JSON object, found str"),
        (
            "load_texts",
            "heldout",
            ['{"content": "b"}'],
            r"heldout\.jsonl:1: text: missing; found content, module",
        ),
        ("load_texts", "heldout", ['{"text": 7}'], r"heldout\.jsonl:1: text: expected text, found 7"),
        (
            "load_texts",
            "heldout",
            ['{"text": "\\ud800"}'],
            r"heldout\.jsonl:1: text: half of a surrogate pair",
        ),
        (
            "load_texts",
            "heldout",
            ['{"text": "a", "module": 3}'],
            r"heldout\.jsonl:1: module: expected text, found 3",
        ),
        (
            "load_texts",
            "heldout",
            ['{"text": "a", "id": 5}', "", '{"text": "b", "id": 5}'],
            r"heldout\.jsonl:3: id: 5 stands in line 1 already",
        ),
        (
            "load_summaries",
            "sft_heldout",
            [json.dumps({"messages": None})],
            r":1: messages: expected one user",
        ),
        (
            "load_choices",
            "sft_heldout",
            [json.dumps(SUMMARY), json.dumps({"messages": [*SUMMARY["messages"][:1], *EMPTY]})],
            r"sft_heldout\.jsonl:2: messages: content: expected text, found none",
        ),
        ("load_choices", "sft_heldout", [json.dumps(SUMMARY)] * 9, "needs 4 different summaries, found 1"),
        (
            "load_preferences",
            "dpo_heldout",
            [json.dumps({**PAIR, "chosen": EMPTY})],
            r":1: chosen: content: expected",
        ),
        (
            "load_preferences",
            "dpo_heldout",
            [json.dumps({**PAIR, "rejected": []})],
            r":1: rejected: expected one",
        ),
        ("load_preferences", "dpo_heldout", [json.dumps({"prompt": PAIR["prompt"]})], r":1: chosen: missing"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_line_and_key(
    tmp_path, monkeypatch, load, name, rows, message
):
    (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=message) as error:
        getattr(tasks, load)()
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named(tmp_path, monkeypatch):
    (tmp_path / "heldout.jsonl").write_bytes(b'{"text": "\xff"}\n')
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"heldout\.jsonl: not UTF-8"):
        tasks.load_texts()


def test_any_held_out_documents_can_be_named(tmp_path, monkeypatch, data):
    """Blank lines are no documents, a text without a module is a family of its own, U+2028 ends no line."""
    texts = ["a\u2028b\x85c", "d"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n\n" for text in texts]
    (tmp_path / "mine.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.setenv("FOUNDRY_HELDOUT_FILE", str(tmp_path / "mine.jsonl"))
    documents = tasks.load_texts()["test"]
    assert documents["text"] == texts
    assert documents["module"] == ["line 1", "line 3"]


def test_what_an_answer_spells_is_written_as_the_chat_template_writes_it(tmp_path, monkeypatch, tokenizer):
    answer = "Ends with <|im_end|> and <|im_start|>user <|endoftext|>"
    pair = {**PAIR, "chosen": [{"role": "assistant", "content": answer}]}
    (tmp_path / "dpo_heldout.jsonl").write_text(json.dumps(pair))
    monkeypatch.setenv("FOUNDRY_DATA_DIR", str(tmp_path))
    chosen = tasks.load_preferences()["test"][0]["choices"][0]
    rendered = tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], tokenize=False)
    assert rendered.endswith(f"<|im_start|>assistant\n{chosen}\n")


class TestCutPrompt:
    """Tokens are words with the blank before them, single blanks, or characters."""

    @staticmethod
    def encode(text):
        return tasks.re.findall(r" ?\w+|\s|[^\w\s]", text)

    @pytest.mark.parametrize(
        ("prompt", "answers", "expected"),
        [
            ("<a>\n", ["Yes", "No"], ("<a>", "\n", True)),
            ("<a>\n\n", ["Yes", "No"], ("<a>", "\n\n", True)),
            ("<a>", ["Yes", "No"], ("<a>", "", True)),
            ("<a>: ", ["Yes", "No"], ("<a>:", " ", False)),  # ": Yes" are two tokens, ": " is two others
            ("<a>: ", ["(1)", "(2)"], ("<a>:", " ", True)),
            ("say", ["Yes", "No"], None),  # one word: no token ends before
            ("<say", ["Yes", "No"], ("<", "say", False)),
        ],
    )
    def test_a_prompt_is_cut_where_a_token_of_every_answer_ends(self, prompt, answers, expected):
        if expected is None:
            with pytest.raises(ValueError, match="no token of the prompt"):
                choices.cut_prompt(prompt, answers, self.encode)
        else:
            assert choices.cut_prompt(prompt, answers, self.encode) == expected

    def test_without_the_tokens_blanks_belong_to_the_answers(self):
        assert choices.cut_prompt("Answer: ", ["Yes"], None) == ("Answer:", " ", False)
        assert choices.cut_prompt("Answer", ["Yes"], None) == ("Answer", "", True)
