"""The panels show what the log says, on shared axes, readable on light and dark."""

import json
import subprocess
import sys

import pytest
from matplotlib import colors, image

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.plots.figure import draw_runs, figure_of
from modeling_foundry.training.plots.panels import MOST_POINTS, THEMES, running_median
from modeling_foundry.training.plots.plot import table_of
from modeling_foundry.training.plots.runs import duration, read_runs, short_count
from tests.conftest import REPOSITORY


def write_run(folder, num_lines=6, rate=1000.0, mfu=0.5, name="first"):
    """A log as RunLog writes it, 10 steps a line, evaluated and resumed on the way."""
    folder.mkdir(parents=True)
    lines = [
        {
            "event": "start", "step": 0, "run_name": name, "config": {"training": {"max_grad_norm": 1.0}},
            "model": {"num_parameters": 1_968_064}, "hardware": {"device": "cpu", "num_ranks": 2},
        }
    ]  # fmt: skip
    for number in range(1, num_lines + 1):
        lines.append(
            {
                "event": "train", "step": 10 * number, "loss": 5 / number, "learning_rate": 1e-3,
                "tokens": 20480 * number, "tokens_per_second": rate, "step_seconds": 2.0,
                "data_wait_seconds": 0.1, "mfu": mfu, "mfu_causal": mfu and mfu * 0.9,
                "model_tflops_per_rank": 0.02, "grad_norm_mean": 0.5, "grad_norm_max": 2.0,
                "clipped_share": 0.25, "host_memory_bytes": 2**30, "training_seconds": 20.0 * number,
                "evaluation_seconds": 1.0, "checkpoint_seconds": 0.5,
            }
        )  # fmt: skip
        if number == 3:
            lines.append({"event": "evaluation", "step": 30, "tokens": 61440, "eval_loss": 2.5})
            lines.append({"event": "resume", "step": 30, "hardware": {"device": "cpu", "num_ranks": 2}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def panel(figure, title):
    (found,) = (axes for axes in figure.axes if axes.get_title("left").startswith(title))
    return found


def curves(axes):
    return [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]


def test_the_panels_hold_the_numbers_of_the_log(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a")])
    figure = figure_of([run], "tokens", THEMES["light"])
    assert curves(panel(figure, "Loss"))[0] == [(20480 * n, 5 / n) for n in range(1, 7)]
    assert curves(panel(figure, "Loss"))[1] == [(61440, 2.5)]
    assert curves(panel(figure, "MFU"))[0][0] == (20480, 50.0)
    assert curves(panel(figure, "MFU"))[1][0] == pytest.approx((20480, 45.0))
    assert curves(panel(figure, "Waiting for data"))[0][0] == pytest.approx((20480, 5.0))
    assert curves(panel(figure, "Host memory"))[0][0] == (20480, 1.0)
    words = [text.get_text() for text in panel(figure, "Gradient norm").get_legend().get_texts()]
    assert "25% of steps clipped to 1" in words
    assert panel(figure, "Speed: median 1,000 tokens/s").get_ylabel() == "tokens/s, all ranks"
    (told,) = (text.get_text() for text in panel(figure, "Where the time went").texts)
    assert told == "training 2 min 0 s, evaluation 1.0 s, checkpoints 0.5 s"
    assert all(axes.get_xlabel() for axes in figure.axes)


def test_without_a_peak_there_is_no_mfu_panel(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a", mfu=None)])
    figure = figure_of([run], "tokens", THEMES["light"])
    assert not [axes for axes in figure.axes if axes.get_title("left").startswith("MFU:")]
    assert curves(panel(figure, "Model TFLOP/s"))[0][0] == (20480, 0.02)


@pytest.mark.parametrize(
    ("axis", "first"), [("tokens", 20480), ("steps", 10), ("hours", pytest.approx(20 / 3600))]
)
def test_runs_are_compared_on_one_axis(tmp_path, axis, first):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", 4, rate=500.0, name="second")]
    runs = read_runs(paths)
    figure = figure_of(runs, axis, THEMES["dark"])
    speed = curves(panel(figure, "Speed"))
    assert [len(curve) for curve in speed] == [6, 4]
    assert [curve[0] for curve in speed] == [(first, 1000.0), (first, 500.0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    looks = {(line.get_color(), str(line.get_linestyle())) for line in panel(figure, "Speed").get_lines()}
    assert len(looks) == 2


def test_long_runs_are_drawn_faint_with_their_median(tmp_path):
    (run,) = read_runs([write_run(tmp_path / "a", MOST_POINTS + 1)])
    lines = panel(figure_of([run], "steps", THEMES["light"]), "Speed").get_lines()
    assert [line.get_alpha() for line in lines[:2]] == [0.3, None]
    assert running_median([1, 1, 9, 1, 1], 1) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("theme", THEMES)
def test_lines_stand_out_from_the_background(theme):
    """Contrast of 3 to 1 at least, what WCAG 2.2 asks of graphics (1.4.11)."""

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    background = luminance(THEMES[theme].background)
    for colour in (*THEMES[theme].lines, THEMES[theme].ink):
        high, low = sorted((luminance(colour), background), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3, colour


@pytest.mark.slow
def test_both_themes_are_written(tmp_path):
    runs = read_runs([write_run(tmp_path / "a")])
    paths = draw_runs(runs, str(tmp_path / "plots"), "tokens", ["light", "dark"])
    assert [path.name for path in paths] == ["training_light.png", "training_dark.png"]
    for path, theme in zip(paths, THEMES.values(), strict=True):
        assert image.imread(path)[0, 0, :3] == pytest.approx(colors.to_rgb(theme.background), abs=0.01)


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.jsonl").write_text('{"event": "start", "step": 0}\n')
    with pytest.raises(FoundryError, match="its log has no training step yet"):
        read_runs([str(tmp_path / "empty")])
    with pytest.raises(FoundryError, match="cannot read a run log"):
        read_runs([str(tmp_path / "absent")])
    run = write_run(tmp_path / "a")
    with pytest.raises(FoundryError, match="names: expected 1, one for each of runs, found 2"):
        read_runs([run], ["one", "two"])
    (tmp_path / "file").write_text("")
    with pytest.raises(FoundryError, match="output_dir: cannot write"):
        draw_runs(read_runs([run]), str(tmp_path / "file"), "tokens", ["light"])


@pytest.mark.slow
def test_the_command_prints_a_table_and_needs_no_torch(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", mfu=None, name="second")]
    code = (
        "import sys; from modeling_foundry.pretraining import commands; commands.main(sys.argv[1:]);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plot", "--runs", *paths, f"--output_dir={tmp_path}/plots"],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    (row,) = (line for line in done.stdout.splitlines() if "MFU, median, full attention" in line)
    assert row.split()[-2:] == ["50.0%", "–"]
    assert (tmp_path / "plots" / "comparison_dark.png").stat().st_size > 20_000


def test_equal_names_give_way_to_the_folders(tmp_path):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    assert [run.name for run in read_runs(paths)] == paths
    (row,) = (column for column in table_of(read_runs(paths, ["x", "y"])).columns if column.header == "y")
    assert row.justify == "right"


@pytest.mark.parametrize(
    ("number", "words"), [(81_920, "81.9k"), (104.9e9, "105B"), (1_968_064, "1.97M"), (12, "12"), (0, "0")]
)
def test_counts_in_three_figures(number, words):
    assert short_count(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.84, "3.8 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7384, "2 h 3 min")]
)
def test_durations_in_two_units(seconds, words):
    assert duration(seconds) == words


def test_ticks_of_the_learning_rate_are_not_rounded():
    """Of 0.0175, 0.015 and 0.0125 two once read 1.8e-2 and 1.3e-2."""
    from modeling_foundry.training.plots.panels import rate_words

    assert [rate_words(rate) for rate in (0.0175, 0.0125, 0.01, 3e-4, 0)] == [
        "1.75e-2", "1.25e-2", "1e-2", "3e-4", "0",
    ]  # fmt: skip
