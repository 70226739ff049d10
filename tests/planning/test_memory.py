"""The memory forecast: measured peaks, hand-made sums, and how it must move."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import (
    TrainingSetup,
    architecture_of,
    count_parameters,
    forecast_memory,
)
from modeling_foundry.planning.formulas.hardware import find_gpu
from modeling_foundry.planning.formulas.memory import DEFAULT_CALIBRATION
from modeling_foundry.planning.formulas.serving import (
    cache_bytes,
    decode_tokens_per_second,
    largest_batch,
    weight_bytes,
)
from modeling_foundry.planning.reports.fit import largest_micro_batch
from tests.conftest import REPOSITORY
from tests.planning.conftest import FAMILIES, REAL, SMALL

GIB = 2**30
FLAGSHIP = architecture_of(REAL["foundry"])
PARAMETERS = 1_830_395_904
RECEIPT = json.loads((REPOSITORY / "benchmarks/receipts/plan_memory.json").read_text())


def setup(**changes) -> TrainingSetup:
    return TrainingSetup(**{"micro_batch": 16, "sequence_length": 2048, **changes})


def test_chunked_loss_of_our_own_kernel_by_hand():
    """bf16 logits of 8,192 rows, overwritten; an fp32 head gradient, the gradient of the hidden states."""
    expected = 2 * 8192 * 151_936 + 4 * 151_936 * 2048 + 2 * 16 * 2048 * 2048
    assert forecast_memory(FLAGSHIP, setup(precision="bf16")).terms["loss"] == expected
    fp32 = forecast_memory(FLAGSHIP, setup(precision="fp32", loss_chunk_tokens=1000))
    assert fp32.moments["loss"]["loss"] == 8 * 1000 * 151_936 + 4 * 151_936 * 2048 + 4 * 16 * 2048 * 2048


@pytest.mark.parametrize("row", RECEIPT["rows"], ids=lambda row: row["run"])
def test_within_five_percent_of_peaks_measured_on_h200(row):
    changes = dict(row["setup"])
    changes["calibration"] = replace(DEFAULT_CALIBRATION, **changes.get("calibration", {}))
    forecast = forecast_memory(FLAGSHIP, setup(**changes)).peak / GIB
    assert forecast == pytest.approx(row["measured_gib"], rel=0.05)
    assert forecast == pytest.approx(row["forecast_gib"], abs=0.01), "run benchmarks/plan_memory.py --receipt"


def test_the_receipt_holds_its_peaks_and_their_errors():
    assert len(RECEIPT["rows"]) >= 17
    assert RECEIPT["largest_error"] < 0.05
    assert RECEIPT["largest_error"] == max(abs(row["error"]) for row in RECEIPT["rows"])


def test_the_recipe_s_own_peaks_are_those_of_its_speed_receipt():
    paths = [
        REPOSITORY / f"benchmarks/receipts/pretrain_{table}.json"
        for table in ("speed", "shapes", "start", "scaling")
    ]
    measured = [
        row for path in paths if path.exists() for row in json.loads(path.read_text())["rows"].values()
    ]
    peaks = [round(row["peak_bytes"] / GIB, 2) for row in measured if "peak_bytes" in row]
    rows = [row for row in RECEIPT["rows"] if row["run"].startswith("the recipe: ")]
    assert len(rows) >= 3
    for row in rows:
        assert row["measured_gib"] in peaks, f"{row['run']}: run benchmarks/plan_memory.py --receipt"


def test_model_state_by_hand():
    bytes_per_parameter = {
        # masters 4, gradients 4, two moments 8
        ("none", "bf16_mixed", 1): 16,
        ("none", "bf16", 1): 8,
        # bf16 weights 2 and gradients 2 everywhere, fp32 masters and moments 12 shared
        ("zero1", "bf16_mixed", 1): 16,
        ("zero1", "bf16_mixed", 8): 4 + 12 / 8,
        ("zero2", "bf16_mixed", 8): 2 + 14 / 8,
        ("zero3", "bf16_mixed", 8): 16 / 8,
        # DDP's buckets hold the gradients a second time
        ("ddp", "bf16_mixed", 8): 20,
        ("none", "fp32", 1): 16,
    }
    for (sharding, precision, ranks), expected in bytes_per_parameter.items():
        forecast = forecast_memory(
            FLAGSHIP, setup(sharding=sharding, precision=precision, num_ranks=ranks, accumulation=2)
        )
        state = sum(forecast.persistent[name] for name in ("parameters", "optimizer state"))
        state += forecast.moments["optimizer step"]["gradients"]
        if sharding == "ddp":
            state += forecast.persistent["communication buffers"]
        assert state == pytest.approx(expected * PARAMETERS, rel=1e-6), (sharding, precision, ranks)


def test_deepspeed_s_buckets_live_from_the_first_backward_pass_to_the_reduction():
    buckets, name = 2 * 500_000_000 * 2, "communication buffers"
    for accumulation, in_loss in ((1, 0), (4, buckets)):
        moments = forecast_memory(FLAGSHIP, setup(sharding="zero1", accumulation=accumulation)).moments
        assert moments["loss"].get(name, 0) == in_loss
        assert moments["backward"][name] == moments["end of backward"][name] == buckets
        assert name not in moments["optimizer step"]


def test_fsdp2_accumulates_whole_bf16_gradients_and_steps_on_its_share():
    moments = forecast_memory(FLAGSHIP, setup(sharding="fsdp2", num_ranks=4, accumulation=4)).moments
    assert moments["loss"]["gradients"] == moments["backward"]["gradients"] == 2 * PARAMETERS
    assert moments["optimizer step"]["gradients"] == PARAMETERS
    alone = forecast_memory(FLAGSHIP, setup(sharding="fsdp2", num_ranks=4)).moments
    assert "gradients" not in alone["loss"]


def test_full_logits_are_what_ran_out_of_memory_before():
    """24 x 2,048 x 151,669 bf16 logits: the 13.89 GiB of the earlier system's out-of-memory report."""
    assert pytest.approx(13.886, abs=1e-3) == 24 * 2048 * 151_669 * 2 / GIB
    earlier = architecture_of(REAL["foundry"] | {"vocab_size": 151_669})
    full = forecast_memory(earlier, setup(micro_batch=24, loss="full", execution="eager"))
    chunked = forecast_memory(earlier, setup(micro_batch=24, loss="chunked", execution="eager"))
    assert full.terms["loss"] > 6 * 13.886 * GIB
    assert full.peak - chunked.peak > 5 * 13.886 * GIB


def test_gradients_wait_only_when_accumulating():
    once, more = (forecast_memory(FLAGSHIP, setup(accumulation=n, precision="bf16")) for n in (1, 4))
    assert more.peak - once.peak == 2 * PARAMETERS  # measured: 71.4 to 74.8 GiB
    assert "gradients" not in once.terms


def test_recomputation_keeps_one_vector_a_layer():
    forecast = forecast_memory(FLAGSHIP, setup(checkpointing=True, precision="bf16"))
    assert forecast.moments["loss"]["activations of the layers"] == 24 * 2048 * 2 * 16 * 2048
    kept = forecast_memory(FLAGSHIP, setup(precision="bf16"))
    assert forecast.peak < kept.peak / 2


setups = st.fixed_dictionaries(
    {
        "micro_batch": st.integers(1, 64),
        "sequence_length": st.sampled_from([128, 1024, 4096]),
        "accumulation": st.sampled_from([1, 2, 8]),
        "num_ranks": st.sampled_from([1, 2, 8, 64]),
        "sharding": st.sampled_from(["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]),
        "precision": st.sampled_from(["fp32", "bf16_mixed", "bf16", "fp8"]),
        "execution": st.sampled_from(["eager", "compiled_layers", "compiled"]),
        "loss": st.sampled_from(["chunked", "full"]),
        "checkpointing": st.booleans(),
        "optimizer": st.sampled_from(["adamw", "muon"]),
    }
)


@settings(max_examples=200)
@given(values=setups, family=st.sampled_from(FAMILIES))
def test_every_combination_has_a_sane_forecast(values, family):
    architecture = architecture_of(REAL[family])
    forecast = forecast_memory(architecture, TrainingSetup(**values))
    assert all(size >= 0 for size in forecast.terms.values())
    assert forecast.peak == sum(forecast.terms.values())
    assert forecast.peak >= max(
        sum(forecast.persistent.values()) + sum(terms.values()) for terms in forecast.moments.values()
    )
    larger = forecast_memory(
        architecture, TrainingSetup(**values | {"micro_batch": values["micro_batch"] + 1})
    )
    assert larger.peak >= forecast.peak
    if values["sharding"] in ("zero1", "zero2", "zero3", "fsdp2"):
        spread = forecast_memory(
            architecture, TrainingSetup(**values | {"num_ranks": values["num_ranks"] * 2})
        )
        assert spread.peak <= forecast.peak


@settings(max_examples=60)
@given(values=setups, available_gib=st.floats(1, 300))
def test_largest_micro_batch_fits_and_one_more_does_not(values, available_gib):
    available = available_gib * GIB
    base = TrainingSetup(**values)
    found = largest_micro_batch(FLAGSHIP, base, available)
    fits = [
        forecast_memory(FLAGSHIP, replace(base, micro_batch=n)).device_bytes <= available
        for n in (found or 1, found + 1)
    ]
    assert fits == ([True, False] if found else [False, False])


# ------------------------------------------------------------------------------------------------ serving


def test_cache_of_known_models():
    assert cache_bytes(FLAGSHIP, 1, 1) == 2 * 24 * 8 * 128 * 2  # keys and values, layers, heads, size, bytes
    assert (
        cache_bytes(architecture_of(REAL["deepseek_v3"]), 1, 1) == 61 * (512 + 64) * 2
    )  # 70,272: MLA's point
    assert cache_bytes(architecture_of(REAL["llama"]), 1, 2048) == GIB  # 0.5 MiB a token


def test_a_window_bounds_the_cache_of_its_layers():
    gemma = architecture_of(REAL["gemma2"])
    one = 2 * 4 * 256 * 2
    assert cache_bytes(gemma, 1, 8192) == 13 * one * 4096 + 13 * one * 8192
    assert cache_bytes(gemma, 3, 100) == 3 * 26 * one * 100


@pytest.mark.parametrize("family", FAMILIES)
def test_cache_equals_the_library_s_own(family):
    """Bytes of a real cache after one pass; windowed layers keep the window less the newest token."""
    import torch

    from tests.planning.conftest import build_model

    values = SMALL[family]
    model, tokens = build_model(values).eval(), 24
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(2, tokens, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    architecture = architecture_of(values)
    windows = [(n, b.attention.window, b.attention.cache_values_per_token) for n, b in architecture.blocks()]
    less = sum(2 * n * size for n, window, size in windows if window and window < tokens)
    assert held == cache_bytes(architecture, 2, tokens, "bf16") // 2 - less


def test_largest_batch_by_hand():
    gpu = find_gpu("H200")
    weights = weight_bytes(FLAGSHIP)
    assert weights == 2 * PARAMETERS
    batch = largest_batch(FLAGSHIP, gpu.memory_bytes, 2048, "bf16", "bf16")
    assert batch == (gpu.memory_bytes - weights) // (2048 * 98_304)
    assert largest_batch(FLAGSHIP, weights - 1, 2048, "bf16", "bf16") == 0


def test_decoding_reads_each_weight_once_a_step():
    gpu = find_gpu("H200")
    read = 2 * (PARAMETERS - 151_936 * 2048) + 98_304 * 1024
    expected = gpu.bandwidth_gb_s * 1e9 / read
    assert decode_tokens_per_second(FLAGSHIP, gpu, 1, 1024, "bf16", "bf16") == pytest.approx(expected)
    deepseek = architecture_of(REAL["deepseek_v3"])
    one, two = (decode_tokens_per_second(deepseek, gpu, n, 1024, "fp8", "bf16") for n in (1, 2))
    assert two < one  # a second sequence may wake every expert
    assert count_parameters(deepseek).total * 0.5 < weight_bytes(deepseek, "int4") * 1.01
