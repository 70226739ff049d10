"""The grid search: its columns are the scalar formulas, it ranks right, it is fast, it emits recipes."""

import math
import time

import numpy as np
import pytest

from modeling_foundry.planning import (
    PlanError,
    TrainingSetup,
    count_flops,
    count_parameters,
    forecast_memory,
    read_model,
)
from modeling_foundry.planning.formulas.scaling import LAWS, predicted_loss
from modeling_foundry.planning.formulas.serving import cache_bytes
from modeling_foundry.planning.options import SearchCommand
from modeling_foundry.planning.reports.budget import Caps
from modeling_foundry.planning.reports.candidates import (
    Bounds,
    all_candidates,
    measures,
    reference_tokens_per_token,
    tokens_per_character,
)
from modeling_foundry.planning.reports.emit import candidate_architecture
from modeling_foundry.planning.reports.search import (
    pareto_front,
    score,
    search_report,
    within_uncertainty,
)

BESIROGLU = LAWS["besiroglu"]
SETUP = TrainingSetup(micro_batch=4, sequence_length=2048, accumulation=2, num_ranks=8, sharding="zero1")


@pytest.mark.parametrize("tied", [True, False])
def test_columns_equal_the_scalar_formulas(tied):
    candidates = all_candidates(Bounds(), [32_000, 151_936], tied)
    columns = measures(candidates, SETUP)
    for index in np.random.default_rng(0).integers(len(candidates), size=25):
        row = candidates.row(int(index))
        architecture = candidate_architecture(row, 2048)
        count = count_parameters(architecture)
        assert columns["total_parameters"][index] == count.total
        assert (
            columns["training_flops_per_token"][index] == count_flops(architecture, 2048).training_per_token
        )
        assert columns["training_bytes"][index] == pytest.approx(
            forecast_memory(architecture, SETUP).peak, abs=4
        )
        cache = cache_bytes(architecture, 32, 4096)
        assert columns["serving_bytes"][index] == 2 * count.total + cache
        read = 2 * (count.total - (0 if tied else row["vocab_size"] * row["hidden_size"]))
        assert columns["decode_bytes_per_token"][index] == read / 32 + cache / 32


def test_all_candidates_are_sensible():
    candidates = all_candidates(Bounds(), [50_304], tied=True).columns
    assert (candidates["hidden_size"] == candidates["num_attention_heads"] * candidates["head_dim"]).all()
    for name in ("hidden_size", "intermediate_size"):
        assert (candidates[name] % 128 == 0).all()
    assert (candidates["num_key_value_heads"] * candidates["head_dim"] % 128 == 0).all()
    assert (candidates["num_attention_heads"] % candidates["num_key_value_heads"] == 0).all()
    ratio = candidates["hidden_size"] / candidates["num_hidden_layers"]
    assert ratio.min() >= 32
    assert ratio.max() <= 192


def test_a_hundred_thousand_candidates_in_two_seconds():
    candidates = all_candidates(Bounds(), [32_000, 50_304, 100_352, 128_256, 151_936], tied=True)
    assert len(candidates) >= 100_000
    times = []
    for _ in range(3):
        start = time.process_time()
        table = score(candidates, SETUP, BESIROGLU, 1e21, Caps())
        within_uncertainty(table, BESIROGLU)
        times.append(time.process_time() - start)
    assert min(times) * 100_000 / len(candidates) < 2


def test_best_is_the_least_loss_of_all_and_order_is_kept():
    report = search_report(SearchCommand(flops="1e21", vocab_sizes=[32_000], top=200))
    losses = [row["loss"] for row in report["best"]]
    assert losses == sorted(losses) or max(np.diff(losses) * -1) < 1e-4  # equal to four decimals: then speed
    tables = [
        score(all_candidates(Bounds(), [32_000], tied), SETUP, BESIROGLU, 1e21, Caps())
        for tied in (True, False)
    ]
    assert losses[0] == pytest.approx(min(table["loss"].min() for table in tables), abs=1e-4)


def test_loss_of_a_row_is_the_law_of_its_tokens():
    row = search_report(SearchCommand(flops="1e21", vocab_sizes=[32_000]))["best"][0]
    architecture = candidate_architecture(row, 2048)
    tokens = 1e21 / count_flops(architecture, 2048).training_per_token
    assert row["tokens"] == pytest.approx(tokens)
    untied = count_parameters(architecture).total + (
        32_000 * row["hidden_size"] if row["tie_word_embeddings"] else 0
    )
    assert row["loss"] == pytest.approx(BESIROGLU.loss(untied, tokens))


def test_a_larger_vocabulary_reads_more_text_but_is_no_larger_model():
    tables = [
        score(all_candidates(Bounds(), [rows], False), SETUP, BESIROGLU, 1e21, Caps())
        for rows in (32_000, 151_936)
    ]
    assert (tables[0]["law_parameters"] == tables[1]["law_parameters"]).all()
    assert (tables[0]["tokens"] > tables[1]["tokens"]).all()  # its head costs more
    assert 1.05 < reference_tokens_per_token(151_936) < 1.15
    assert 3.9 < 1 / tokens_per_character(32_000) < 4.0  # characters a token


def test_recommended_is_the_cheapest_to_serve_among_equals():
    report = search_report(SearchCommand(flops="1e21"))
    ranges = report["flatness"]["ranges"]
    assert report["recommended"]["decode_bytes_per_token"] == ranges["decode_bytes_per_token"][0]
    assert report["recommended"]["loss"] <= ranges["loss"][1]
    assert report["flatness"]["num_tied"] >= 2
    low, high = ranges["total_parameters"]
    assert low <= report["best"][0]["total_parameters"] <= high


def test_a_law_without_covariance_says_nothing_of_flatness():
    assert search_report(SearchCommand(flops="1e21", law="hoffmann"))["flatness"] is None


def test_pareto_front_by_brute_force():
    generator = np.random.default_rng(3)
    for _ in range(20):
        names = ("loss", "decode_bytes_per_token", "training_bytes")
        table = {name: generator.integers(0, 12, 60).astype(float) for name in names}
        table["loss"] /= 1000  # all within the depth of the front
        order = np.lexsort([table[name] for name in reversed(names)])
        table = {name: column[order] for name, column in table.items()}
        points = np.stack(list(table.values()), axis=1)
        expected = {
            tuple(p) for p in points if not any((q <= p).all() and (q < p).any() for q in points)
        }  # fmt: skip
        found = [tuple(p) for p in points[pareto_front(table)]]
        assert len(found) == min(len(expected), 12)
        assert set(found) <= expected
        assert found[0] == min(expected)


def test_the_front_stops_where_the_loss_is_another_budget_s():
    front = search_report(SearchCommand(flops="1e21"))["front"]
    losses = [row["loss"] for row in front]
    assert losses == sorted(losses)
    assert losses[-1] <= losses[0] + 0.1


def test_constraints_hold():
    report = search_report(
        SearchCommand(
            flops="1e22",
            gpu="RTX4090",
            num_gpus=1,
            mfu=0.4,
            max_parameters="2B",
            min_layers=10,
            max_layers=20,
        )
    )
    for row in [*report["best"], *report["front"], report["recommended"]]:
        assert 10 <= row["num_hidden_layers"] <= 20
        assert row["total_parameters"] <= 2e9
        architecture = candidate_architecture(row, 2048)
        setup = TrainingSetup(micro_batch=4, sequence_length=2048, accumulation=2)
        assert forecast_memory(architecture, setup).device_bytes <= 24_564 * 2**20 * 0.95


def test_nothing_fits_is_said():
    with pytest.raises(PlanError, match=r"none of .* candidates"):
        search_report(SearchCommand(flops="1e22", gpu="H100", max_parameters="20K", min_hidden=1024))


def test_absurdly_wide_bounds_are_refused():
    with pytest.raises(PlanError, match="narrow the bounds"):
        search_report(SearchCommand(flops="1e22", max_layers=1000, max_hidden=65_536))


def test_a_small_dataset_prefers_larger_models():
    free = search_report(SearchCommand(flops="1e21"))["best"][0]
    scarce = search_report(SearchCommand(flops="1e21", dataset_tokens="2B", max_epochs=4))["best"][0]
    assert scarce["tokens"] <= 8e9
    assert scarce["total_parameters"] > free["total_parameters"]


def test_repeated_tokens_cost_what_the_budget_command_says():
    """The same N, D and dataset, the same loss: excess parameters are discounted in both commands."""
    row = search_report(
        SearchCommand(flops="1e21", dataset_tokens="2B", vocab_sizes=[32_000], tie_word_embeddings=False)
    )["best"][0]
    expected = predicted_loss(BESIROGLU, row["total_parameters"], row["tokens"], 2e9)
    assert row["loss"] == pytest.approx(expected)


def test_sizes_beyond_whole_numbers_of_64_bits_are_counted_right():
    """8,192 x 80 layers at ten million tokens: more FLOPs and bytes than an int64 holds."""
    bounds = Bounds((80, 80), (8192, 8192), (32, 192))
    setup = TrainingSetup(micro_batch=65_536, sequence_length=10_000_000)
    candidates = all_candidates(bounds, [32_000], False)
    columns = measures(candidates, setup)
    architecture = candidate_architecture(candidates.row(0), 2048)
    flops = count_flops(architecture, 10_000_000).training_per_token
    assert columns["training_flops_per_token"][0] == pytest.approx(flops)
    assert columns["training_bytes"][0] == pytest.approx(forecast_memory(architecture, setup).peak)


def test_outside_the_fitted_range_is_said():
    assert search_report(SearchCommand(flops="1e21"))["notes"][1:] == []
    notes = search_report(SearchCommand(flops="1e26"))["notes"]
    assert "outside the fitted range" in " ".join(notes)


def test_a_budget_that_the_dataset_cannot_use_is_said():
    notes = search_report(SearchCommand(flops="1e22", dataset_tokens="100M"))["notes"]
    assert "unspent" in " ".join(notes)


def test_memory_is_never_left_unchecked():
    with pytest.raises(PlanError, match="gpu_memory_gib: missing"):
        search_report(SearchCommand(flops="1e21", gpu_peak=500.0))


# --------------------------------------------------------------------------------------------------- emit


@pytest.fixture
def emitted(tmp_path):
    folder = tmp_path / "recipes" / "my_model"
    report = search_report(SearchCommand(flops="3e20", gpu="H100", num_gpus=8, emit=str(folder)))
    return folder, report


def test_emitted_recipes_pass_the_scripts_own_loader(emitted):
    from modeling_foundry import settings
    from tests.test_recipes import dataclasses_of

    folder, report = emitted
    assert sorted(path.name for path in folder.iterdir()) == ["dpo.yaml", "pretrain.yaml", "sft.yaml"]
    for stage in ("pretrain", "sft", "dpo"):
        parsed = settings.parse(
            *dataclasses_of(stage), argv=["--config", str(folder / f"{stage}.yaml"), "--use_cpu=true"]
        )
        arguments = parsed[-1]
        assert arguments.output_dir == f"runs/my_model/{stage}"
    chosen, schedule = report["recommended"], report["emitted"]["schedule"]
    model = read_model(folder / "pretrain.yaml")
    assert count_parameters(model.architecture).total == chosen["total_parameters"]
    assert model.recipe.tokens_per_step(8) == report["emitted"]["tokens_per_step"]
    assert model.recipe.max_steps == schedule["max_steps"]
    planned = schedule["max_steps"] * report["emitted"]["tokens_per_step"]
    assert planned == pytest.approx(chosen["tokens"], rel=0.01)


def test_emitted_schedule_follows_deepseek_s_fits(emitted):
    schedule = emitted[1]["emitted"]["schedule"]
    assert schedule["learning_rate"] == pytest.approx(0.3118 * 3e20**-0.125, rel=0.05)
    assert emitted[1]["emitted"]["tokens_per_step"] == pytest.approx(0.2920 * 3e20**0.3271, rel=0.1)
    assert 0 < schedule["warmup_steps"] <= 2000


def test_emitting_never_overwrites(emitted):
    folder, _ = emitted
    before = (folder / "pretrain.yaml").read_text()
    with pytest.raises(PlanError, match="exists already"):
        search_report(SearchCommand(flops="1e20", emit=str(folder)))
    assert (folder / "pretrain.yaml").read_text() == before


@pytest.mark.parametrize("folder", ["", "..", "/", "recipes/a b", "x\ny"])
def test_emitting_to_a_nameless_folder_is_refused(folder):
    with pytest.raises(PlanError, match="emit"):
        search_report(SearchCommand(flops="1e20", emit=folder))


def test_emitting_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PlanError, match="emit: cannot write"):
        search_report(SearchCommand(flops="1e20", emit=str(tmp_path / "file" / "model")))
    with pytest.raises(PlanError, match="emit: cannot write .*File name too long"):
        search_report(SearchCommand(flops="1e20", emit=str(tmp_path / ("long" * 80))))


@pytest.mark.slow
def test_an_emitted_recipe_trains(tmp_path):
    """The real script, two steps, on data prepared from a text file."""
    import sys

    from tests import warm_start
    from tests.conftest import REPOSITORY

    folder = tmp_path / "tiny"
    search_report(
        SearchCommand(
            flops="2e11", num_gpus=1, gpu="H100", use_cpu=True, emit=str(folder), vocab_sizes=[512],
            max_layers=4, max_hidden=128, sequence_length=64,
        )
    )  # fmt: skip
    recipe = folder / "pretrain.yaml"
    text = "".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("data_dir"))
    recipe.write_text(text)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "\n\n".join(f"The square of {n} is {n * n}, and its cube is {n**3}." for n in range(3000))
    )
    run = warm_start.run(
        [
            sys.executable, str(REPOSITORY / "recipes/pretrain.py"), "--config", str(recipe),
            "--text_file", str(corpus), "--text_file_vocab_size=512", "--max_steps=2", "--eval_strategy=no",
            f"--output_dir={tmp_path}/run/pretrain", "--logging_steps=1", "--warmup_steps=1",
        ],
        cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "run/pretrain/model/config.json").exists()


def test_math_of_the_uncertainty_of_a_difference():
    """Two candidates with the same N and D tie; far ones do not."""
    table = {
        "law_parameters": np.array([1e9, 1e9, 1.05e9, 20e9]),
        "law_tokens": np.array([2e10, 2e10, 2e10 / 1.05, 1e9]),
    }
    table["loss"] = BESIROGLU.E + BESIROGLU.A * table["law_parameters"] ** -BESIROGLU.alpha
    table["loss"] = table["loss"] + BESIROGLU.B * table["law_tokens"] ** -BESIROGLU.beta
    tie = within_uncertainty(table, BESIROGLU)
    assert tie[:2].all()
    assert not tie[3]
    assert math.isfinite(table["loss"].sum())
