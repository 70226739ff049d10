"""The report from small results: complete in one file, with nothing fetched from anywhere."""

import json
import re
from base64 import b64decode

import numpy as np
import pytest
from rich.console import Console

from modeling_foundry.evaluation.outcomes import Outcomes
from modeling_foundry.evaluation.pipeline import scores_and_comparisons
from modeling_foundry.evaluation.report.figures import (
    GREY,
    colours_of,
    draw_bits_per_byte,
    draw_figures,
    draw_losses,
)
from modeling_foundry.evaluation.report.labels import BITS_PER_BYTE, PREFERENCE, STOP_RATE
from modeling_foundry.evaluation.report.report import build_report
from modeling_foundry.evaluation.report.summary import (
    build_markdown,
    print_conversation,
    print_results,
)
from modeling_foundry.evaluation.stages import Stage, read_stage
from modeling_foundry.settings import FoundryError

NAMES = ("random", "base", "sft", "dpo")
PNG = b"\x89PNG\r\n\x1a\n"


def outcomes(values, weights=None, higher_is_better=True) -> Outcomes:
    documents = tuple(f"item {index}" for index in range(len(values)))
    weights = np.ones(len(values)) if weights is None else weights
    return Outcomes(np.asarray(values, dtype=float), weights, documents, documents, higher_is_better)


@pytest.fixture(scope="module")
def results():
    """Base learns, SFT stops, and DPO changes nothing that can be shown."""
    sizes = np.linspace(1000, 5000, 12)
    wobble = np.linspace(-0.1, 0.1, 12)
    measured = {
        name: {BITS_PER_BYTE: outcomes(sizes * (level + wobble), sizes, higher_is_better=False)}
        for name, level in zip(NAMES, (7.1, 2.4, 2.4, 2.4), strict=True)
    }
    alternating = [index % 2 for index in range(40)]
    for name in NAMES[1:]:
        measured[name][PREFERENCE] = outcomes(alternating)
        measured[name][STOP_RATE] = outcomes([0] * 40 if name == "base" else [1] * 39 + [0])
    answer = {"text": "<script>alert(1)</script>", "ended": True, "num_tokens": 4}
    cut = {"text": "and so on and so", "ended": False, "num_tokens": 48}
    return {
        "experiment": "small",
        "models": {name: {"folder": name, "weights_sha256": "ab" * 32, "num_parameters": 9876} for name in NAMES},
        **scores_and_comparisons(measured),
        "compression": {"num_bytes": 36_000, "gzip_bits_per_byte": 2.2, "xz_bits_per_byte": 1.9},
        "context": {"max_positions": 128, "num_bytes": 390.2},
        "answers": [
            {"prompt": "def f(x):", "truth": "A & B.", "models": {"base": cut, "dpo": answer}},
        ],
        "items": {"stdlib_bits_per_byte": [0, 1]},
        "settings": {"max_new_tokens": 48, "untrained": ["random"]},
        "prompts_file": "my/chat.jsonl",
        "heldout_file": "my/<texts>.jsonl",
        "left_out": [],
        "machine": {"processor": "a processor", "cores": 2},
        "versions": {"torch": "2.13"},
        "commit": "0123456789abcdef",
        "started": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:05+00:00",
        "seconds": {"total": 61.0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def stages():
    log = tuple(
        {"step": step, "loss": 7 - step / 50, "tokens": 2048 * step, "tokens_per_second": 9000 + step}
        for step in range(10, 110, 10)
    )
    held_out = ({"step": 0, "eval_loss": 7.6}, {"step": 100, "eval_loss": 5.1})
    settings = {"settings": {"training": {"learning_rate": 0.01}}, "started": "2026-01-02T03:00:00+00:00"}
    return [Stage("pretrain", settings, {"steps": 100, "training_seconds": 75.2}, log + held_out)]


@pytest.fixture(scope="module")
def figures(results, stages):
    return draw_figures(results, stages)


@pytest.fixture(scope="module")
def report(results, stages, figures):
    return build_report(results, stages, figures)


def test_pictures_are_drawn(figures):
    assert set(figures) == {"loss.png", "throughput.png", "bits_per_byte.png", "scores.png"}
    for png in figures.values():
        assert png.startswith(PNG)
        width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
        assert width >= 1000
        assert height >= 300


def test_every_picture_is_embedded(report, figures):
    embedded = {b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', report)}
    assert embedded == set(figures.values())


def test_nothing_is_fetched_from_anywhere(report):
    without_pictures = re.sub(r'src="data:image/png;base64,[^"]+"', "", report)
    assert "http" not in without_pictures
    assert not re.search(r"<(script|link|iframe|object|embed)\b|src=|@import|url\(", without_pictures)


def test_text_of_models_is_escaped(report):
    assert "<script>" not in report
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in report
    assert "A &amp; B." in report


def test_verdicts_say_what_is_true(results, report):
    verdicts = {(row["metric"], row["after"]): row["verdict"] for row in results["comparisons"]}
    assert verdicts == {
        (BITS_PER_BYTE, "base"): "better",
        (BITS_PER_BYTE, "sft"): "no difference",
        (BITS_PER_BYTE, "dpo"): "no difference",
        (PREFERENCE, "sft"): "no difference",
        (PREFERENCE, "dpo"): "no difference",
        (STOP_RATE, "sft"): "better",
        (STOP_RATE, "dpo"): "no difference",
    }
    assert report.count("= no difference") == 5 + 1  # the table, and DPO's card
    assert '<span class="badge worse">cut</span>' in report
    assert '<span class="badge better">ended</span>' in report


def test_numbers_of_the_run_are_in_the_report(report):
    for text in (
        "9,876 parameters",
        "7.126",
        "2.426",
        "97.5",
        "commit 0123456789ab",
        "0:01:15",
        "128 tokens",
        "36,000",
    ):
        assert text in report


def test_a_report_without_stages_or_answers_still_stands(results):
    alone = {**results, "answers": []}
    figures = draw_figures(alone, [])
    report = build_report(alone, [], figures)
    assert "loss.png" not in figures
    assert "What it says" not in report


def test_markdown_and_terminal_show_the_same(results, capsys):
    markdown = build_markdown(results)
    assert "| Bits per byte | 7.126" in markdown
    assert "| Stop rate | base → sft | ▲ better | +97.5" in markdown
    console = Console(width=80, force_terminal=False)
    print_results(results, console)
    print_conversation(results, console)
    printed = capsys.readouterr().out
    assert re.search(r"sft → dpo +(=|▲|▼) ", printed), printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "A chat with dpo" in printed
    for shown in (markdown, " ".join(printed.split())):
        assert "the exact sign test has p < 0.05 too" in shown


def test_results_are_json_without_nan(results):
    assert json.loads(json.dumps(results, allow_nan=False))["scores"]


def test_a_torn_log_of_a_stage_is_one_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(FoundryError, match=r"log\.jsonl:2: not valid JSON") as error:
        read_stage(tmp_path)
    assert "\n" not in str(error.value)


def test_a_short_run_has_no_halves_of_steps():
    log = tuple({"step": step, "loss": 3.0 - step / 100} for step in (5, 10, 15, 20))
    figure = draw_losses([Stage("dpo", log=log)])
    assert all(place == int(place) for place in figure.axes[0].get_xticks())


def test_five_stages_have_five_panels():
    log = tuple({"step": step, "loss": 3.0 - step / 100} for step in (5, 10))
    figure = draw_losses([Stage(f"stage {number}", log=log) for number in range(7)])
    assert [axis.get_title() for axis in figure.axes] == [f"stage {number}" for number in range(7)]


@pytest.fixture(scope="module")
def of_one_model(results):
    """One model, of a task whose name has the signs of Markdown, HTML, rich and matplotlib."""
    metric = "x|y[bold]<b>$a$/acc"
    measured = {
        "mine": {
            metric: outcomes([0, 1, 1, 0]),
            BITS_PER_BYTE: outcomes([800.0, 900.0], np.asarray([300.0, 310.0])),
        }
    }
    left_out = [{"task": "t", "item": 3, "where": "a|[dim]<i>.jsonl:4", "reason": "300|[dim]<i> tokens"}] * 2
    own = {"models": {"mine": results["models"]["base"]}, **scores_and_comparisons(measured)}
    return {**results, **own, "answers": [], "left_out": left_out}


def test_markdown_of_one_model_has_rows_and_no_empty_table(of_one_model):
    tables = [part for part in build_markdown(of_one_model).split("\n\n") if part.startswith("|")]
    assert len(tables) == 1
    rows = [re.split(r"(?<!\\)\|", line) for line in tables[0].splitlines()]
    assert len(rows) == 4
    assert {len(row) for row in rows} == {4}
    assert "nothing to compare" in build_markdown(of_one_model)


def test_what_is_left_out_is_said_everywhere(of_one_model, capsys):
    said = "t: 2 of its items left out for all models, the first because of 300|[dim]<i> tokens."
    assert said in build_markdown(of_one_model)
    assert ".jsonl" not in build_markdown(of_one_model)  # a card prints it for others
    assert said.replace("<i>", "&lt;i&gt;") in build_report(of_one_model, [], {})
    print_results(of_one_model, Console(width=200, force_terminal=False))
    assert said in capsys.readouterr().out


def test_a_name_is_no_markup(of_one_model, capsys):
    assert draw_figures(of_one_model, [])["scores.png"].startswith(
        PNG
    )  # an unclosed formula would be an error
    report = build_report(of_one_model, [], {})
    assert "x|y[bold]&lt;b&gt;$a$ acc" in report
    assert "Did it really get better?" not in report
    print_results(of_one_model, Console(width=200, force_terminal=False))
    assert "x|y[bold]<b>$a$ acc" in capsys.readouterr().out


def test_only_random_weights_are_grey(results):
    """Not the first model, and not one that merely has that name."""
    assert colours_of(results)["random"] == GREY
    renamed = {**results, "settings": {"untrained": []}}
    assert GREY not in colours_of(renamed).values()
    assert len(set(colours_of(renamed).values())) == 4


def test_every_model_has_a_bar(results):
    names = [f"model{number}" for number in range(9)]
    sizes = np.asarray([1000.0, 2000.0])
    measured = {name: {BITS_PER_BYTE: outcomes(2 * sizes, sizes, higher_is_better=False)} for name in names}
    many = {**results, "models": {name: {} for name in names}, **scores_and_comparisons(measured)}
    ticks = [label.get_text() for label in draw_bits_per_byte(many).axes[0].get_yticklabels()]
    assert ticks == [*names, "xz -9e", "gzip -9"]


def test_the_page_says_whose_questions_were_asked(report):
    assert "They are those of my/chat.jsonl." in report
    assert "bytes of my/&lt;texts&gt;.jsonl for all" in report
