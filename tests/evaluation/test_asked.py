"""What is found before any model is loaded: by a console and the settings alone, in one process."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from modeling_foundry.evaluation.asked import what_is_asked
from modeling_foundry.evaluation.harness import last_line
from modeling_foundry.evaluation.pipeline import evaluate
from modeling_foundry.evaluation.settings import EvaluationSettings
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY

TASK_DIR = str(REPOSITORY / "eval_tasks")
CHOICE, PREFERENCE, BITS = "stdlib_summary_choice", "stdlib_summary_preference", "stdlib_bits_per_byte"
GENERATE = "stdlib_summary_generate"


@pytest.fixture(scope="module")
def folder(build_checkpoint):
    return build_checkpoint("base")


@pytest.fixture
def own_data(data_dir, tmp_path):
    """A copy of the data folder to spoil, and a function that changes one row of a file."""
    for path in data_dir.glob("*.jsonl"):
        (tmp_path / path.name).write_text(path.read_text())

    def change(name: str, line: int, **values):
        path = tmp_path / f"{name}.jsonl"
        rows = path.read_text().splitlines()
        rows[line - 1] = json.dumps({**json.loads(rows[line - 1]), **values})
        path.write_text("\n".join(rows) + "\n")

    return tmp_path, change


def settings_of(folder, data_dir, output="runs/x/eval", **changes) -> EvaluationSettings:
    values = {
        "models": [f"base={folder}"], "data_dir": str(data_dir), "task_dir": TASK_DIR, "output_dir": str(output),
        "num_stop_prompts": 0, "max_new_tokens": 8, "device": "cpu", "max_text_bytes": 5000,
    }  # fmt: skip
    return EvaluationSettings(**values | changes)


def asked(settings):
    console = Console(record=True, width=400)
    return what_is_asked(settings, console), console.export_text()


def messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# ------------------------------------------------------------------------------------------ longer than the context


def test_prompts_longer_than_the_context_are_named_and_left_out(folder, own_data):
    data, change = own_data
    for line in (3, 7, 8, 20, 41):
        change("sft_heldout", line, messages=messages("x " * 150, f"Unlike {line}."))
    found, printed = asked(settings_of(folder, data, tasks=[CHOICE]))
    assert found.items[CHOICE] == [item for item in range(48) if item + 1 not in (3, 7, 8, 20, 41)]
    assert [one.item for one in found.left_out] == [2, 6, 7, 19, 40]
    assert f"left out: {data}/sft_heldout.jsonl:3: " in printed
    assert "tokens with its answer, more than the context of base, 96" in printed
    assert "left out: 2 more; results.json names them" in printed


def test_an_answer_longer_than_the_context_is_named_by_its_line(folder, own_data):
    data, change = own_data
    change("dpo_heldout", 5, rejected=[{"role": "assistant", "content": "word " * 200}])
    found, printed = asked(settings_of(folder, data, tasks=[PREFERENCE]))
    assert len(found.items[PREFERENCE]) == 47
    assert f"left out: {data}/dpo_heldout.jsonl:5: " in printed


def test_the_same_is_refused_by_a_setting(folder, own_data):
    data, change = own_data
    for line in (5, 9):
        change("dpo_heldout", line, rejected=[{"role": "assistant", "content": "word " * 200}])
    with pytest.raises(FoundryError, match=r"dpo_heldout\.jsonl:5: .* \(and 1 more\); too_long: leave_out"):
        asked(settings_of(folder, data, tasks=[PREFERENCE], too_long="refuse"))


def test_a_smaller_context_leaves_items_out_for_all_models_alike(folder, build_checkpoint, data_dir):
    import shutil

    small = build_checkpoint("small").parent / "short"
    shutil.copytree(folder, small)
    config = json.loads((small / "config.json").read_text()) | {"max_position_embeddings": 34}
    (small / "config.json").write_text(json.dumps(config))
    models = [f"base={folder}", f"short={small}"]
    kept = asked(settings_of(folder, data_dir, tasks=[CHOICE]))[0].items[CHOICE]
    found, _ = asked(settings_of(folder, data_dir, tasks=[CHOICE], models=models))
    assert 0 < len(found.items[CHOICE]) < len(kept) == 48
    assert {one.reason.split(" of ")[1] for one in found.left_out} == {"short, 34"}


def test_a_generation_needs_room_for_its_answer(folder, own_data):
    data, change = own_data
    change("sft_heldout", 4, messages=messages("abc " * 15, "Fits alone."))  # with 48 new tokens it does not
    found, printed = asked(settings_of(folder, data, tasks=[GENERATE, CHOICE]))
    assert 3 in found.items[CHOICE]
    assert 3 not in found.items[GENERATE]
    assert f"left out: {data}/sft_heldout.jsonl:4: " in printed


def test_documents_are_cut_into_windows_and_none_is_left_out(folder, data_dir):
    found, printed = asked(settings_of(folder, data_dir, tasks=[BITS]))
    assert not found.left_out
    assert "left out" not in printed


def test_nothing_left_is_an_error_that_names_the_first(folder, own_data):
    data, _ = own_data
    rows = [json.dumps({"messages": messages("x " * 150, f"Answer {n}.")}) for n in range(6)]
    (data / "sft_heldout.jsonl").write_text("\n".join(rows))
    with pytest.raises(FoundryError, match=rf"{CHOICE}: no item is left .*sft_heldout\.jsonl:1: "):
        asked(settings_of(folder, data, tasks=[CHOICE]))


# ------------------------------------------------------------------------------------------ bad items


OWN_TASK = """task: own
custom_dataset: !function own.load
output_type: multiple_choice
test_split: test
doc_to_text: q
doc_to_choice: choices
doc_to_target: gold
"""


@pytest.mark.parametrize(
    ("choices", "gold", "message"),
    [
        (["a", ""], 0, "own: item 2: choice 1: expected text, found ''"),
        (["a", "b"], 2, "own: item 2: right answer: expected 0 to 1 or one of the choices, found 2"),
        (["a", "b"], -1, "own: item 2: right answer: expected 0 to 1 or one of the choices, found -1"),
        (["a", "b"], "c", "own: item 2: right answer: .*, found 'c'"),
        (["a", "b"], 1.0, "own: item 2: right answer: .*, found 1.0"),
        (["a", "b"], [0, 5], "own: item 2: right answer: .*, found 5"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named(folder, data_dir, tmp_path, choices, gold, message):
    good = [0] if isinstance(gold, list) else type(gold)(0) if not isinstance(gold, str) else "a"
    rows = [{"q": "Which?", "choices": ["a", "b"], "gold": good}] * 2
    rows += [{"q": "Which?", "choices": choices, "gold": gold}]
    (tmp_path / "own.py").write_text(
        f"from datasets import Dataset, DatasetDict\nROWS = {rows!r}\n"
        "def load(**_):\n    return DatasetDict({'test': Dataset.from_list(ROWS)})\n"
    )
    (tmp_path / "any.yaml").write_text(OWN_TASK)
    settings = settings_of(folder, data_dir, tasks=["own"], task_dir=str(tmp_path))
    if gold == 1.0 and isinstance(gold, float):
        message = message.replace("item 2", "item 0").replace("1.0", "0.0")
    with pytest.raises(FoundryError, match=message):
        asked(settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": None}, "own: item 1: own cannot ask it .AssertionError"),
        ({"choices": None}, "own: item 1: own cannot ask it .TypeError"),
    ],
)
def test_an_item_that_a_task_cannot_ask_is_named(folder, data_dir, tmp_path, changed, message):
    rows = [{"q": "Which?", "choices": ["a", "b"], "gold": 0}] * 2
    rows[1] = rows[1] | changed
    (tmp_path / "own.py").write_text(
        f"from datasets import Dataset, DatasetDict\nROWS = {rows!r}\n"
        "def load(**_):\n    return DatasetDict({'test': Dataset.from_list(ROWS)})\n"
    )
    (tmp_path / "any.yaml").write_text(OWN_TASK)
    with pytest.raises(FoundryError, match=message) as error:
        asked(settings_of(folder, data_dir, tasks=["own"], task_dir=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line", "values", "message"),
    [
        (
            "sft_heldout",
            6,
            {"messages": messages("q", "")},
            r"sft_heldout\.jsonl:6: messages: content: expected",
        ),
        ("sft_heldout", 2, {"messages": "q"}, r"sft_heldout\.jsonl:2: messages: expected one user"),
        ("dpo_heldout", 1, {"chosen": []}, r"dpo_heldout\.jsonl:1: chosen: expected one assistant message"),
        ("heldout", 3, {"text": None}, r"heldout\.jsonl:3: text: expected text, found null"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_measured(folder, own_data, name, line, values, message):
    data, change = own_data
    change(name, line, **values)
    with pytest.raises(FoundryError, match=message):
        evaluate(settings_of(folder, data, data / "eval"), Console(quiet=True))
    assert not (data / "eval" / "lm_eval").exists()


def test_a_text_that_becomes_a_control_token_whatever_is_asked_is_left_out(folder, own_data, monkeypatch):
    """As with the pieces of a Unigram: training leaves such documents out too."""
    from modeling_foundry.evaluation.measuring import context_room as room

    data, change = own_data
    change("heldout", 2, text="spells it " * 9)
    monkeypatch.setattr(
        room, "control_token_in", lambda _, request: "</s>" if "spells it" in request.args[0] else None
    )
    found, printed = asked(settings_of(folder, data, tasks=[BITS]))
    assert 1 not in found.items[BITS]
    assert "heldout.jsonl:2: </s>, as which base reads a part of it" in printed


# ------------------------------------------------------------------------------------------ own corpora


def test_own_documents_and_own_questions(folder, tmp_path):
    """No folder of the quickstart's anywhere: a corpus, and a chat file with a system message and two turns."""
    rows = [{"text": f"Document {number} of mine. " * 20} for number in range(5)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = [{"role": "system", "content": "Be short."}, *messages("Hello", "Hi."), *messages("Why?", "So.")]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    settings = settings_of(
        folder, tmp_path / "nowhere", tasks=[BITS], heldout_file=str(tmp_path / "corpus.jsonl"),
        prompts_file=str(tmp_path / "chat.jsonl"), num_stop_prompts=9,
    )  # fmt: skip
    found, _ = asked(settings)
    assert found.items[BITS] == [0, 1, 2, 3, 4]
    assert [prompt.messages for prompt in found.prompts] == [talk[:-1]]
    assert found.prompts[0].truth == "So."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [BITS]}, r"nowhere/heldout\.jsonl: no such file; .*tokenize does not.*heldout_file"),
        (
            {"tasks": [BITS], "heldout_file": "nothing.jsonl"},
            r"nothing\.jsonl: no such file; set data_dir|nothing\.jsonl: no such file",
        ),
        (
            {"num_stop_prompts": 4},
            r"sft_heldout\.jsonl: no such file; .*prompts_file, or set num_stop_prompts: 0",
        ),
    ],
)
def test_missing_data_are_found_first_and_the_right_way_is_named(folder, tmp_path, changes, message):
    settings = settings_of(folder, tmp_path / "nowhere", tmp_path / "eval", **changes)
    with pytest.raises(FoundryError, match=message) as error:
        evaluate(settings, Console(quiet=True))
    assert "make data" not in str(error.value)
    assert not (tmp_path / "eval" / "lm_eval").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": messages("q", "a")[1:]}, r"chat\.jsonl, line 1: messages: expected a question before"),
        ({"messages": messages("q", "a")[:1]}, r"chat\.jsonl, line 1: no assistant turn last"),
        ({"messages": messages("q", 7)}, r"chat\.jsonl, line 1: wrong type"),
        ({"text": "q"}, r"chat\.jsonl, line 1: missing key: messages"),
    ],
)
def test_a_bad_question_is_named(folder, data_dir, tmp_path, row, message):
    (tmp_path / "chat.jsonl").write_text(json.dumps(row))
    settings = settings_of(
        folder, data_dir, tasks=[BITS], prompts_file=str(tmp_path / "chat.jsonl"), num_stop_prompts=2
    )
    with pytest.raises(FoundryError, match=message):
        asked(settings)


def test_prompts_without_room_are_left_out_and_none_left_is_an_error(folder, own_data):
    data, change = own_data
    change("sft_heldout", 4, messages=messages("x " * 150, "never"))
    settings = settings_of(folder, data, tasks=[BITS], num_stop_prompts=48)
    found, printed = asked(settings)
    assert len(found.prompts) == 47
    assert "sft_heldout.jsonl, line 4: " in printed
    settings.max_new_tokens = 96
    with pytest.raises(FoundryError, match=r"stop_rate \(max_new_tokens: 96\): no item is left"):
        asked(settings)


def test_a_model_without_a_chat_template_is_measured_on_documents_alone(folder, data_dir, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "chat_template.jinja").unlink()
    assert asked(settings_of(bare, data_dir, tasks=[BITS]))[0].items[BITS]
    with pytest.raises(
        FoundryError, match=r"base: its tokenizer has no chat template .*stdlib_bits_per_byte"
    ):
        asked(settings_of(bare, data_dir, tasks=[CHOICE]))


@pytest.mark.parametrize(
    ("folders", "title"),
    [
        (["runs/mine/pretrain/initial_model", "runs/mine/sft/model"], "mine"),
        (["/somewhere/SmolLM"], "SmolLM"),
        (["runs/a/sft/model", "runs/b/sft/model"], "a, b"),
        (["/model"], "model"),
    ],
)
def test_the_page_is_titled_by_what_the_models_come_from(folders, title):
    models = [f"m{number}={folder}" for number, folder in enumerate(folders)]
    assert EvaluationSettings(models=models).experiment() == title


# ------------------------------------------------------------------------------------------ names and devices


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["arc_eazy"]}, "tasks: arc_eazy: no task of .*; nearest: arc_easy"),
        (
            {"tasks": ["stdlib_summary_chioce"]},
            "stdlib_summary_chioce: no task of .*; nearest: stdlib_summary_choice",
        ),
        ({"task_dir": "nowhere"}, "nowhere: task_dir: expected a folder of lm-eval task files"),
        (
            {"limits": {"stdlib_summary_chioce": 4}},
            "limits: stdlib_summary_chioce: not one of tasks.*_choice",
        ),
        (
            {"untrained": ["base"], "untrained_tasks": [GENERATE], "tasks": [BITS]},
            "untrained_tasks: expected some of",
        ),
        ({"tasks": [CHOICE, "stdlib"]}, f"tasks: {CHOICE}: asked for twice, the second time by stdlib"),
    ],
)
def test_a_name_is_refused_before_anything_is_loaded(folder, data_dir, tmp_path, changes, message):
    settings = settings_of(folder, data_dir, tmp_path / "eval", **changes)
    with pytest.raises(FoundryError, match=message):
        evaluate(settings, Console(quiet=True))
    assert not (tmp_path / "eval" / "lm_eval").exists()


def test_data_that_are_not_there_are_found_before_a_model_is_loaded(folder, data_dir, tmp_path):
    settings = settings_of(folder, data_dir, tmp_path / "eval", tasks=["arc_easy"])
    with pytest.raises(
        FoundryError, match=r"tasks: arc_easy: lm-eval cannot load it \(ConnectionError"
    ) as error:
        evaluate(settings, Console(quiet=True))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "eval" / "lm_eval").exists()


def test_a_gpu_that_is_not_there_is_refused_first(folder, data_dir, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = settings_of(folder, data_dir, tmp_path / "eval", device="cuda", tasks=["arc_eazy"])
    with pytest.raises(
        FoundryError, match="device: cuda: torch sees no CUDA device here; expected cpu or auto"
    ):
        evaluate(settings, Console(quiet=True))


def test_a_group_is_its_tasks_with_its_limit(folder, data_dir):
    found, _ = asked(settings_of(folder, data_dir, tasks=["stdlib"], limits={"stdlib": 3}))
    assert sorted(found.tasks_of["base"]) == sorted([BITS, CHOICE, PREFERENCE, GENERATE])
    assert {name: len(items) for name, items in found.items.items()} == dict.fromkeys(found.items, 3)


def test_the_environment_is_as_it_was(folder, data_dir, monkeypatch):
    import os

    monkeypatch.setenv("FOUNDRY_DATA_DIR", "somewhere")
    monkeypatch.delenv("FOUNDRY_HELDOUT_FILE", raising=False)
    asked(settings_of(folder, data_dir, tasks=[BITS]))
    assert os.environ["FOUNDRY_DATA_DIR"] == "somewhere"
    assert "FOUNDRY_HELDOUT_FILE" not in os.environ


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("ValueError: no\n\rRunning: 0%|          | 0/8 [00:00<?, ?it/s]", "ValueError: no"),
        ("a\rRun: 10%|█ | 1/8 [00:00<00:01, 9.1it/s]\rRun: 20%|██| 2/8 [00:00<00:01, 9it/s]\n", "a"),
        ("AssertionError\n3it [00:01, 2.50it/s]\n\n", "AssertionError"),
        ("only 50% of it\n", "only 50% of it"),
        ("", "nothing"),
    ],
)
def test_the_last_line_is_no_progress_bar(log, said):
    assert last_line(log) == said


def test_the_command_names_a_file_of_items(tmp_path):
    """A command line holds 128 KiB in one word: 20,000 items are too many for it."""
    from modeling_foundry.evaluation.harness import Job

    job = Job(
        "m", tmp_path, ("t",), {"t": list(range(40_000))}, tmp_path, tmp_path, "cpu", 1, 1, True, True, {}, {}
    )
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": []}')
    command = job.command(Path("out"))
    assert command[command.index("--samples") + 1] == "out/items.json"
    assert max(map(len, command)) < 4000
