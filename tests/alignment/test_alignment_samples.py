"""What SFT and DPO train on is what the file says: checked whole, rendered as checked, counted where it is left out."""

import json
import os
import shutil

import pytest

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.alignment.samples import check_samples, cut_of, hash_of_samples, load_samples
from modeling_foundry.settings import FoundryError
from tests.data.template_here import Here
from tests.data.test_chat_linter import CALL, GREET, WITH_TOOLS, pair, sample

ARGUMENTS = {"sft": alignment.SFTArguments, "dpo": alignment.DPOArguments}
QUIET = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "max_length": 64,
}


@pytest.fixture(autouse=True)
def _no_child(monkeypatch):
    monkeypatch.setattr("modeling_foundry.data.linting.pipeline.TemplateProcess", Here)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(stage, number=6, **changed):
    make = sample if stage == "sft" else pair
    return [make(**{"question": f"def add_{place}(x):", **changed}) for place in range(number)]


@pytest.fixture
def prepare(tiny_checkpoint, tmp_path, monkeypatch):
    """Everything up to the first step; returns the trainer."""

    def run(stage, rows, eval_rows=None, model=tiny_checkpoint, settings=(), **changed):
        trainers = []
        monkeypatch.setattr(alignment, "run", lambda _, trainer, *__: trainers.append(trainer))
        files = {"train_file": write(tmp_path / "train.jsonl", rows)}
        if eval_rows is not None:
            files["eval_file"] = write(tmp_path / "held_out.jsonl", eval_rows)
        arguments = ARGUMENTS[stage](str(tmp_path / "run"), **{**QUIET, **changed})
        given = alignment.AlignmentSettings(model=str(model), **files, **dict(settings))
        getattr(alignment, stage)(given, arguments)
        return trainers[0]

    return run


@pytest.fixture
def unloaded(monkeypatch):
    """A refusal comes before any weights are read."""
    monkeypatch.setattr(alignment, "load_base", lambda *_: pytest.fail("weights loaded before the refusal"))


@pytest.fixture
def with_tools(tiny_checkpoint, tmp_path):
    """The tiny checkpoint under a template that reads tools, calls and a variable."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "with_tools")
    (folder / "chat_template.jinja").write_text(WITH_TOOLS)
    return folder


# ------------------------------------------------------------------------------------ no type is guessed

TEXTS = [
    "2024-01-03",
    "2024-01-03T00:00:00",
    "007",
    "1" * 30,
    "true",
    "null",
    "1.50",
    "NaN",
    "",
    "<datetime>",
]


def loaded(tmp_path, rows, kind, limit=None):
    settings = alignment.AlignmentSettings("model", write(tmp_path / "rows.jsonl", rows))
    (file,) = check_samples(settings, {"train_file": str(hash(json.dumps(rows)))}, kind)
    return load_samples(file, limit, 0)


@pytest.mark.parametrize("text", TEXTS)
def test_every_row_of_such_texts_arrives_as_text(text, tmp_path):
    rows = [pair(chosen=text, rejected="other") for _ in range(3)]
    assert list(loaded(tmp_path, rows, "preference")) == rows
    rows = [sample(question=text, answer=text)] * 3
    assert list(loaded(tmp_path, rows, "sft")) == rows


def test_texts_that_change_their_look_after_the_first_block_arrive_as_text(tmp_path):
    rows = [sample(answer="2024-01-03" + " " * 1000)] * 1500 + [sample(answer=text) for text in TEXTS]
    found = [row["messages"][1]["content"] for row in loaded(tmp_path, rows, "sft")]
    assert sorted(found) == sorted(row["messages"][1]["content"] for row in rows)


def test_keys_of_one_row_are_no_nulls_of_another(tmp_path):
    calling = [sample()["messages"][0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    other = {"type": "function", "function": {"name": "bow", "parameters": {"default": None, "top": 0.1}}}
    rows = [
        sample(), {"messages": calling, "tools": [GREET, other]}, {"messages": calling, "tools": [other]},
        {**sample(), "chat_template_kwargs": {"enable_thinking": False}},
    ]  # fmt: skip
    found = [{**row, "tools": json.loads(row["tools"] or "null")} for row in loaded(tmp_path, rows, "sft")]
    expected = [{"tools": None, "chat_template_kwargs": {}, **row} for row in rows]
    assert sorted(found, key=str) == sorted(
        ({name: row[name] for name in found[0]} for row in expected), key=str
    )


def test_a_changed_file_of_the_same_name_is_read_anew(tmp_path):
    assert list(loaded(tmp_path, [sample(answer="One.")], "sft")) == [sample(answer="One.")]
    assert list(loaded(tmp_path, [sample(answer="Two.")], "sft")) == [sample(answer="Two.")]
    assert len(loaded(tmp_path, rows_of("sft", 9), "sft", limit=4)) == 4


# ----------------------------------------------------------------------- what TRL makes tokens of


def test_sft_trains_tools_calls_and_variables(with_tools, prepare):
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Greet."}
    row = {**sample(), "tools": [GREET], "chat_template_kwargs": {"enable_thinking": True}}
    row["messages"] = [row["messages"][0], calling]
    trainer = prepare("sft", [row, sample()], [row, sample()], model=with_tools, max_length=None)
    expected = trainer.processing_class.apply_chat_template(
        row["messages"], tools=[GREET], enable_thinking=True, return_dict=True
    )["input_ids"]
    for data in (trainer.train_dataset, trainer.eval_dataset):
        assert expected in list(data["input_ids"])
        (labels,) = [each["labels"] for each in data if each["input_ids"] == expected]
        learned = trainer.processing_class.decode([id for id in labels if id != -100])
        assert learned == 'Greet.greet{"whom": "world"}<|im_end|>'


def test_dpo_trains_tools_and_variables(with_tools, prepare):
    row = {**pair(), "tools": [GREET], "chat_template_kwargs": {"enable_thinking": True}}
    row["chosen"][0]["reasoning_content"] = "Greet."
    trainer = prepare("dpo", [row, pair()], [row], model=with_tools, max_length=None)
    decode = trainer.processing_class.decode
    for data in (trainer.train_dataset, trainer.eval_dataset):
        texts = {(decode(each["prompt_ids"]), decode(each["chosen_ids"])) for each in data}
        assert any("Say hello." in prompt and answer.startswith("Greet.Hello") for prompt, answer in texts)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("place", [0, 700])
@pytest.mark.usefixtures("unloaded")
def test_calls_and_tools_that_the_template_ignores_are_refused(stage, place, prepare):
    rows = rows_of(stage, 701)
    rows[place]["tools"] = [GREET]
    expected = (
        f"train.jsonl: turns, calls and tools in the text: 1 of .* first line {place + 1}: tools, tool 1"
    )
    with pytest.raises(FoundryError, match=expected):
        prepare(stage, rows)


def test_keys_that_no_template_reads_are_named_at_the_start(prepare, capsys):
    rows = rows_of("sft")
    rows[3]["messages"][1]["reasoning_content"] = "Hm."
    prepare("sft", rows)
    said = capsys.readouterr().out
    assert (
        "sft: train_file: keys that are read: the template writes nothing of reasoning_content (of 1 rows)"
        in said
    )


# ---------------------------------------------------------------------------- both files are checked


@pytest.mark.parametrize("key", ["train", "held_out"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"messages": "text", "prompt": "text"}, "is text; expected a list of messages"),
        ({"text": "a"}, "missing key: .*; the row has text: a document"),
        ({"conversations": []}, "ShareGPT's format"),
        ({"messages": [], "prompt": []}, "has no messages"),
        ({"weight": 0}, "weight is 0, but every answer is learned"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_a_bad_row_of_either_file_is_refused(stage, key, bad, words, prepare):
    rows = {"train": rows_of(stage), "held_out": rows_of(stage)}
    rows[key] += [{**rows[key][0], **bad} if not {"text", "conversations"} & set(bad) else bad]
    with pytest.raises(FoundryError, match=rf"{key}.jsonl, line 7: .*{words}"):
        prepare(stage, rows["train"], rows["held_out"])


@pytest.mark.parametrize("key", ["train", "held_out"])
@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.usefixtures("unloaded")
def test_a_file_of_rows_that_are_all_too_long_is_refused(stage, key, prepare):
    rows = {"train": rows_of(stage), "held_out": rows_of(stage)}
    rows[key] = rows_of(stage, question="add list of items " * 60)
    with pytest.raises(FoundryError, match=rf"{key}.jsonl: (answers not cut|chosen is not rejected): "):
        prepare(stage, rows["train"], rows["held_out"])


def test_held_out_samples_that_are_trained_on_are_counted(prepare, capsys):
    prepare("sft", rows_of("sft"), [*rows_of("sft", 2), sample()])
    said = capsys.readouterr().out
    assert "sft: eval_file: held-out samples: 2 of 3 different samples are in train_file, too" in said


def test_a_row_that_only_trl_renders_and_the_template_refuses_is_one_line(
    tiny_checkpoint, tmp_path, prepare, monkeypatch
):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "strict")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        "{%- if 'forbidden' in messages[0]['content'] %}{{- raise_exception('not that') }}{%- endif %}"
        + template
    )
    monkeypatch.setattr("modeling_foundry.alignment.samples.NUM_LINTED_SAMPLES", 1)
    rows = [*rows_of("sft"), *rows_of("sft", 1, question="forbidden")]
    with pytest.raises(
        FoundryError, match=r"train.jsonl: the chat template refuses a row \(TemplateError: not that\); "
    ):
        prepare("sft", rows, model=folder)


# --------------------------------------------------------------------------- what max_length leaves out


def test_samples_that_are_cut_wholly_are_counted(prepare, capsys):
    rows = [*rows_of("sft", 4), *rows_of("sft", 3, question="add list of items " * 60)]
    trainer = prepare("sft", rows, rows)
    said = capsys.readouterr().out
    assert "sft: train_file: answers not cut: 3 of 7 are at max_length 64, 3 of them wholly" in said
    for key, data in (("train_file", trainer.train_dataset), ("eval_file", trainer.eval_dataset)):
        assert len(data) == 4
        assert f"{key}: left out of 7 samples: 3 (nothing to learn is left at max_length 64)" in said


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_nothing_is_said_where_nothing_is_wrong(stage, prepare, capsys):
    prepare(stage, rows_of(stage))
    assert capsys.readouterr().out == ""


def test_answers_at_the_end_are_kept_by_keep_end(prepare, capsys):
    rows = rows_of("sft", 3, question="add list of items " * 60)
    trainer = prepare("sft", rows, truncation_mode="keep_end")
    assert len(trainer.train_dataset) == 3
    assert "left out" not in capsys.readouterr().out


def test_where_all_tokens_are_learned_a_long_question_is_no_loss(prepare, capsys):
    rows = [*rows_of("sft", 1), *rows_of("sft", 3, question="add list of items " * 60)]
    trainer = prepare("sft", rows, assistant_only_loss=False)
    said = capsys.readouterr().out
    assert len(trainer.train_dataset) == 4
    assert "answers not cut: 3 of 4 are at max_length 64, 0 of them wholly" in said
    assert "left out" not in said


LONG = "add list of items return the sum " * 4


@pytest.mark.parametrize(
    ("rows", "mode", "left", "reason"),
    [
        ([pair(chosen=LONG * 3 + "map", rejected=LONG * 3 + "key")], "keep_start", 3, "chosen is rejected, token"),
        ([pair(chosen="map" + LONG, rejected="key" + LONG)], "keep_start", 4, None),
        ([pair(chosen="map " + LONG * 3, rejected="key " + LONG * 3)], "keep_end", 3, "chosen is rejected"),
        ([pair(chosen="sum", rejected="sum")], "keep_start", 3, "chosen is rejected, token"),
        ([pair(question=LONG * 3)], "keep_start", 3, "nothing to learn is left at max_length 64"),
        ([pair(question=LONG * 3)], "keep_end", 4, None),
    ],
)  # fmt: skip
def test_pairs_without_a_difference_are_left_out_and_counted(rows, mode, left, reason, prepare, capsys):
    rows = [*rows_of("dpo", 3), *rows]
    trainer = prepare("dpo", rows, rows, truncation_mode=mode)
    said = capsys.readouterr().out
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (left, left)
    for key in ("train_file", "eval_file"):
        assert (f"{key}: left out of 4 samples: 1 ({reason}" in said) == (reason is not None), said


def test_nothing_left_is_one_line(tmp_path):
    from datasets import Dataset

    from modeling_foundry.alignment.left_out_samples import leave_out_samples
    from modeling_foundry.alignment.samples import SampleFile

    class Emptied:
        args = ARGUMENTS["sft"](str(tmp_path / "run"), **QUIET)
        train_dataset = Dataset.from_dict({"input_ids": [], "labels": []})

    settings = alignment.AlignmentSettings("model", write(tmp_path / "rows.jsonl", rows_of("sft")))
    (file,) = check_samples(settings, {"train_file": "x"}, "sft")
    assert isinstance(file, SampleFile)
    with pytest.raises(
        FoundryError, match=r"rows.jsonl: all 6 samples are left out: .* at max_length 64\); raise"
    ):
        leave_out_samples(Emptied(), [file], [Dataset.from_list(rows_of("sft"))])


@pytest.mark.parametrize(
    ("changed", "max_length"),
    [
        ({}, 64),
        ({"max_length": None}, None),
        ({"packing": True}, 64),
        ({"packing": True, "packing_strategy": "bfd_split"}, None),
        ({"packing": True, "packing_strategy": "wrapped"}, None),
    ],
)
def test_what_is_checked_is_cut_as_trl_cuts(changed, max_length, tmp_path):
    assert cut_of(ARGUMENTS["sft"](str(tmp_path), **{**QUIET, **changed})).max_length == max_length


# ------------------------------------------------------------------------------------ chat_template_path


@pytest.mark.usefixtures("unloaded")
def test_the_template_that_trains_is_the_one_that_is_checked(prepare, tmp_path):
    wrong = tmp_path / "wrong.jinja"
    wrong.write_text(
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}{% generation %}{{- m.content + '<|im_end|>' }}"
        "{% endgeneration %}{{- '\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    with pytest.raises(FoundryError, match=r"train.jsonl: answers alone are trained: 6 other turns are, too"):
        prepare("sft", rows_of("sft"), chat_template_path=str(wrong))


def test_a_template_mends_a_folder_without_one(tiny_checkpoint, tmp_path, prepare):
    bare = shutil.copytree(tiny_checkpoint, tmp_path / "bare")
    template = (bare / "chat_template.jinja").rename(tmp_path / "good.jinja")
    with pytest.raises(FoundryError, match="bare: no chat template"):
        prepare("sft", rows_of("sft"), model=bare)
    trainer = prepare("sft", rows_of("sft"), model=bare, chat_template_path=str(template))
    assert trainer.processing_class.chat_template == template.read_text()
    trainer = prepare("sft", rows_of("sft"), model=bare, chat_template_path=str(tiny_checkpoint))
    assert trainer.processing_class.chat_template == template.read_text()


def test_a_folder_gives_its_template_with_its_tokens(tiny_checkpoint, tmp_path, prepare):
    from transformers import AutoTokenizer

    from modeling_foundry.data.tokenizer.training import SPECIAL_TOKENS

    plain = shutil.copytree(tiny_checkpoint, tmp_path / "plain")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (plain / name).read_text()
        for token in SPECIAL_TOKENS[1:]:
            text = text.replace(token, f"<|other_{token[2:-2]}|>")
        (plain / name).write_text(text)
    (plain / "chat_template.jinja").unlink()
    trainer = prepare("sft", rows_of("sft"), model=plain, chat_template_path=str(tiny_checkpoint))
    stop = trainer.processing_class.convert_tokens_to_ids("<|im_end|>")
    assert "<|im_end|>" not in AutoTokenizer.from_pretrained(plain).get_vocab()
    assert trainer.model.get_input_embeddings().num_embeddings > stop
    assert all(labels[-2] == stop for labels in trainer.train_dataset["labels"])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jinja", None, "none.jinja: expected a .jinja or .j2 file, or a folder with a tokenizer"),
        ("template.txt", b"{{ messages }}", "template.txt: expected a .jinja or .j2 file"),
        ("binary.jinja", b"\xff\xfe", "binary.jinja: cannot be read as UTF-8"),
        ("organization/name", None, "organization/name: expected a .jinja"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_a_template_that_is_none_is_one_line(name, content, words, prepare, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FoundryError, match=f"chat_template_path: .*{words}"):
        prepare("sft", rows_of("sft"), chat_template_path=str(tmp_path / name))


def test_a_pipe_is_refused_before_it_is_waited_for(tmp_path):
    """Its hash would take the rows, and one that nobody writes to would never end."""
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(
        FoundryError, match=r"rows.jsonl: a pipe, which gives its rows once; write them to a file"
    ):
        hash_of_samples(str(tmp_path / "rows.jsonl"))
