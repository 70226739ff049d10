"""The commands as people run them: fast, without torch, readable, and one line for bad input."""

import json
import re
import resource
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import (
    GPUS,
    PlanError,
    TrainingSetup,
    architecture_of,
    find_gpu,
    gpu_of_device,
    read_model,
)
from modeling_foundry.planning.commands import COMMANDS, main
from modeling_foundry.planning.options import FitCommand, ModelCommand, quantity
from modeling_foundry.planning.reports.fit import fit_report
from modeling_foundry.planning.reports.model import model_report
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY
from tests.planning.conftest import FAMILIES, REAL

FLAGSHIP = str(REPOSITORY / "recipes/qwen3_1.8b/pretrain.yaml")
EXAMPLES = {
    "model": ["--model", FLAGSHIP],
    "fit": ["--model", FLAGSHIP],
    "serve": ["--model", FLAGSHIP],
    "budget": ["--flops", "1e21"],
    "search": ["--flops", "1e20"],
    "gpus": [],
}


def plan(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / "recipes/plan.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)


def report(capsys, *arguments: str) -> dict:
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def processor_seconds() -> float:
    """Of all child processes that have ended, in user and kernel mode."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_answers_in_a_second_without_torch(name):
    """Processor seconds of a fresh process, imports included; the least of three, since caches may be cold."""
    limit = 2 if name == "search" else 1  # 230,400 candidates
    program = (
        "import sys\n"
        "from modeling_foundry.planning import commands\n"
        f"commands.main({[name, *EXAMPLES[name]]!r})\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        before = processor_seconds()
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
        seconds.append(processor_seconds() - before)
        assert run.returncode == 0, run.stderr
        if seconds[-1] < limit:
            break
    assert min(seconds) < limit, seconds


@pytest.mark.parametrize("name", list(COMMANDS))
def test_json_is_strict_and_tables_fit_a_hundred_columns(name, capsys):
    def refuse(word):
        raise AssertionError(word)

    main([name, *EXAMPLES[name], "--json"])
    json.loads(capsys.readouterr().out, parse_constant=refuse)
    main([name, *EXAMPLES[name]])
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert max(len(line) for line in lines if not line.startswith("/")) <= 100


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["model", "fit", "serve"])
def test_every_family_through_every_command(name, family, write_config, capsys):
    main([name, "--model", str(write_config(REAL[family]))])
    assert family in capsys.readouterr().out or name != "model"


def test_flagship_report(capsys):
    answer = report(
        capsys, "model", "--model", FLAGSHIP, "--num_gpus=8", "--mfu=0.5", "--usd_per_gpu_hour=2.5"
    )
    assert answer["parameters"]["total"] == 1_830_395_904
    assert answer["flops"]["training_per_token"] == {"full": 10_322_706_432, "causal": 9_718_726_656}
    assert answer["flops"]["tokens_per_step"] == 4_194_304
    training = answer["training"]
    assert training["tokens"] == 104_857_600_000
    rate = 8 * 989e12 * 0.5 / 10_322_706_432
    assert training["tokens_per_second"] == pytest.approx(rate)
    hours = 104_857_600_000 / rate / 3600
    assert training["hours"] == pytest.approx(hours)
    assert training["usd"] == pytest.approx(hours * 8 * 2.5)
    assert training["energy_kwh"] == pytest.approx(hours * 8 * 0.7)


def test_the_earlier_system_s_real_rate_is_its_real_mfu(capsys):
    """633.1k tokens/s on 8 B200, over dense peaks: 36.3%, as its training plot says."""
    answer = report(
        capsys, "model", "--model", FLAGSHIP, "--gpu=B200", "--num_gpus=8", "--tokens_per_second=633100"
    )
    assert answer["training"]["mfu"] == pytest.approx(0.3631, abs=2e-4)


def test_mfu_does_not_depend_on_how_many_gpus_share_the_rate(capsys):
    shares = [
        report(capsys, "model", "--model", FLAGSHIP, f"--num_gpus={n}", f"--tokens_per_second={50_000 * n}")
        for n in (1, 2, 8)
    ]
    assert len({round(answer["training"]["mfu"], 12) for answer in shares}) == 1


def test_uptime_stretches_the_time(capsys):
    whole, part = (
        report(capsys, "model", "--model", FLAGSHIP, f"--uptime={u}")["training"]["hours"] for u in (1, 0.8)
    )
    assert part == pytest.approx(whole / 0.8)


def test_quickstart_is_planned_before_any_data_exists():
    run = plan("model", "--model", "recipes/quickstart/pretrain.yaml")
    assert run.returncode == 0, run.stderr
    assert "give --tokens_per_second" in run.stdout


def test_unknown_gpu_gets_no_percentage(capsys):
    answer = report(capsys, "model", "--model", FLAGSHIP, "--gpu=L40S")
    assert "mfu" not in answer["training"]
    assert "give --mfu" in answer["training"]["unknown"]
    other = report(capsys, "model", "--model", FLAGSHIP, "--gpu-peak=500", "--mfu=0.4")  # dashes are fine too
    assert other["training"]["tokens_per_second"] == pytest.approx(8 * 500e12 * 0.4 / 10_322_706_432)
    assert other["memory"]["fits"] is None


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_a_typical_mfu_is_a_bf16_one(precision, capsys):
    arguments = ["model", "--model", FLAGSHIP, f"--precision={precision}"]
    assert "give --mfu" in report(capsys, *arguments)["training"]["unknown"]
    assert report(capsys, *arguments, "--mfu=0.3")["training"]["mfu"] == 0.3


def test_several_gpus_share_in_some_way():
    for settings_type, report_of in ((ModelCommand, model_report), (FitCommand, fit_report)):
        with pytest.raises(PlanError, match="sharding: none is for one GPU; 8 need ddp"):
            report_of(settings_type(model=FLAGSHIP, sharding="none", num_gpus=8))


def test_weights_that_do_not_fit_have_no_speed(write_config, capsys):
    answer = report(capsys, "serve", "--model", str(write_config(REAL["deepseek_v3"])))
    assert all(row["largest_batch"] == 0 for row in answer["rows"])
    assert all(row["tokens_per_second_bound"] is None for row in answer["rows"])
    assert "do not fit" in " ".join(answer["notes"])


QUANTIZED = [
    ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "8 bits (fp8", "fp8"),  # DeepSeek-V3
    ({"quant_method": "gptq", "bits": 4}, "4 bits (gptq", "int4"),
    ({"quant_method": "awq", "w_bit": 4}, "4 bits (awq", "int4"),
    ({"quant_method": "gptq", "bits": 8}, "8 bits (gptq", "fp8"),
    ({"quant_method": "mxfp4"}, "4 bits (mxfp4", "int4"),  # gpt-oss
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "4 bits (modelopt", "int4"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, "4 bits (bitsandbytes", "int4"),
    (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
        "8 bits (compressed-tensors", "fp8",
    ),
    ({"quant_method": "gptq", "bits": 3}, "3 bits (gptq", None),
    ({"quant_method": "[/new]"}, "stored ([/new], ", None),
    ({}, "stored (a method it does not name, ", None),
]  # fmt: skip


@pytest.mark.parametrize(("quantization", "said", "dtype"), QUANTIZED)
def test_weights_stored_in_other_bits_are_said(write_config, capsys, quantization, said, dtype):
    """An fp8 checkpoint was counted as bf16, twice its size, without a word."""
    path = str(write_config(REAL["deepseek_v3"] | {"quantization_config": quantization}))
    (note, *_) = report(capsys, "serve", "--model", path)["notes"]
    assert said in note
    assert "counted here in bf16" in note
    assert ("--dtype" in note) == (dtype is not None)
    if dtype is not None:
        assert f"; --dtype {dtype} counts them so" in note
        assert "stored" not in " ".join(report(capsys, "serve", "--model", path, f"--dtype={dtype}")["notes"])
    main(["serve", "--model", path, "--gpu=L40S"])
    assert "quantization_config" in capsys.readouterr().out


@pytest.mark.parametrize("value", [5, "fp8", ["fp8"]])
def test_a_quantization_that_is_no_object_is_one_line(write_config, value):
    path = str(write_config(REAL["deepseek_v3"] | {"quantization_config": value}))
    with pytest.raises(PlanError, match="quantization_config: expected an object, found"):
        main(["serve", "--model", path])


def test_a_name_with_markup_is_a_name(tmp_path, capsys):
    path = tmp_path / "[bold]" / "[" / "x].json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(REAL["deepseek_v3"]))
    for command in ("model", "serve", "fit"):
        main([command, "--model", str(path), "--gpu=H200"])
        assert "[bold]" in capsys.readouterr().out


def test_does_not_fit_is_said(write_config):
    run = plan("model", "--model", str(write_config(REAL["deepseek_v3"])))
    assert run.returncode == 0
    assert "DOES NOT FIT" in run.stdout
    assert "prediction layers" in run.stdout


def test_fit_splits_a_global_batch(capsys):
    best = report(capsys, "fit", "--model", FLAGSHIP, "--num_gpus=8", "--global_batch_tokens=4194304")["best"]
    assert best["micro_batch"] * best["accumulation"] * 8 * 2048 == best["batch_tokens"]
    assert best["batch_tokens"] == pytest.approx(4_194_304, rel=0.02)
    assert best["sharding"] == "zero1"
    assert best["checkpointing"] is False


def test_fit_keeps_the_global_batch_of_a_recipe(write_config, capsys):
    """The largest micro-batch on an H100 is 17, of which 4,194,304 tokens are no multiple: training refuses it."""
    text = (REPOSITORY / "recipes/qwen3_1.8b/pretrain.yaml").read_text()
    text = re.sub(r"(?m)^gradient_accumulation_steps:.*$", "global_batch_tokens: 4194304", text)
    path = write_config(text, "pretrain.yaml")
    for ranks in (8, 1024):  # the recipe's own micro-batch of 16 is too large for 1,024
        arguments = ["fit", "--model", str(path), "--gpu=H100", f"--num_gpus={ranks}"]
        answer = report(capsys, *arguments)
        best, recipe = answer["best"], read_model(path).recipe
        assert best["micro_batch"] < answer["ways"][0]["micro_batch"]
        accumulation = recipe.accumulation_of(best["micro_batch"], ranks, 2048)  # what training computes
        assert accumulation == best["accumulation"]
        assert best["batch_tokens"] == 4_194_304
        main(arguments)
        shown = capsys.readouterr().out
        assert "--global_batch_tokens=4194304" in shown
        assert "--gradient_accumulation_steps" not in shown  # training takes one of them
    other = report(capsys, *arguments[:4], "--num_gpus=8", "--global_batch_tokens=2M")["best"]
    assert other["batch_tokens"] == pytest.approx(2e6, rel=0.05)


def test_a_split_batch_does_not_change_the_table_of_what_fits(capsys):
    whole, split = (
        report(capsys, "fit", "--model", FLAGSHIP, "--accumulation=2", *more)
        for more in ([], ["--global_batch_tokens=4M"])
    )
    assert split["ways"] == whole["ways"]
    assert split["best"]["micro_batch"] < split["ways"][0]["micro_batch"]
    memory = split["memory"]
    assert split["best"]["device_bytes"] == memory["peak_bytes"] + memory["outside_allocator_bytes"]


# -------------------------------------------------------------------------------------------------- GPUs


def test_gpus_hold_dense_peaks():
    for gpu in GPUS:
        assert 1.9 < gpu.bf16_sparse_tflops / gpu.bf16_tflops < 2.1, gpu.name
        if gpu.fp8_tflops:
            assert 1.9 < gpu.fp8_tflops / gpu.bf16_tflops < 2.1, gpu.name
        assert gpu.source
        assert (gpu.typical_mfu is None) == (gpu.mfu_source == "")
        assert 0.89 < gpu.memory_mib * 2**20 / (gpu.memory_gb * 1e9) < 1.1
    peaks = {gpu.name: gpu.bf16_tflops for gpu in GPUS}
    assert (peaks["B200"], peaks["H200"], peaks["H100"], peaks["A100-80"]) == (2250, 989, 989, 312)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 SXM", "H100"),
        ("a100-80gb", "A100-80"),
        ("rtx 4090", "RTX4090"),
        ("4090", "RTX4090"),
    ],
)
def test_gpu_names_are_forgiving(name, found):
    assert find_gpu(name).name == found


@pytest.mark.parametrize("name", ["A100", "V100", "", "H100 NVL", "\n", "x" * 500])
def test_unknown_gpus_are_refused(name):
    with pytest.raises(PlanError, match="is not in the table") as error:
        find_gpu(name)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 250


def test_device_names_of_drivers():
    assert gpu_of_device("NVIDIA H200").name == "H200"
    assert gpu_of_device("NVIDIA H100 80GB HBM3").name == "H100"
    assert gpu_of_device("NVIDIA H100 NVL") is None
    assert gpu_of_device("Tesla T4") is None


# -------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], None),  # usage
        (["plan"], "no such command"),
        (["model"], "model: missing"),
        (["model", "--model", "nowhere.json"], "nowhere.json: cannot read"),
        (["model", "--model", FLAGSHIP, "--modle=x"], "did you mean"),
        (["model", "--model", FLAGSHIP, "--gpu=H1000"], "did you mean H100"),
        (["model", "--model", FLAGSHIP, "--gpu_peak=0"], "gpu_peak"),
        (["model", "--model", FLAGSHIP, "--gpu_peak=nan"], "gpu_peak"),
        (["model", "--model", FLAGSHIP, "--num_gpus=0"], "num_gpus: expected a number from 1"),
        (["model", "--model", FLAGSHIP, "--num_gpus=-8"], "num_gpus"),
        (["model", "--model", FLAGSHIP, "--num_gpus=1.5"], "num_gpus"),
        (["model", "--model", FLAGSHIP, "--mfu=57"], "mfu: expected a number from 1e-06 to 1"),
        (["model", "--model", FLAGSHIP, "--tokens=lots"], "tokens: expected a number such as 100B"),
        (["model", "--model", FLAGSHIP, "--tokens=-5"], "tokens"),
        (["model", "--model", FLAGSHIP, "--tokens=0"], "tokens"),
        (["model", "--model", FLAGSHIP, "--sharding=zero9"], "sharding: expected one of"),
        (["model", "--model", FLAGSHIP, "--sequence_length=99999999999"], "sequence_length"),
        (["model", "--model", "recipes/custom/pretrain.yaml", "--gpu=v100"], "is not in the table"),
        (["fit", "--model", FLAGSHIP, "--margin=1"], "margin"),
        (["fit", "--model", FLAGSHIP, "--gpu_peak=100"], "gpu_memory_gib: missing"),
        (["serve", "--model", FLAGSHIP, "--dtype=fp16"], "dtype: expected one of"),
        (["budget"], "exactly one of"),
        (["budget", "--flops=1e99"], "flops"),
        (["budget", "--flops=1e21", "--law=kaplan"], "law: expected one of"),
        (["budget", "--flops=1e21", "--model", FLAGSHIP, "--parameters=7B"], "not both"),
        (["search", "--flops=1e21", "--min_layers=50", "--max_layers=10"], "min_layers"),
        (["search", "--flops=1e21", "--vocab_sizes", "10"], "vocab_sizes"),
        (["gpus", "--plot=/proc/nowhere"], "plot: unknown key"),
        (["serve", "--model", FLAGSHIP, "--plot"], "plot: unknown key"),
        (["search", "--flops=1e21", "--plot"], "plot: unknown key"),
        (["serve", "--model", FLAGSHIP, "--mfu=0.3"], "mfu: unknown key"),
        (["fit", "--model", FLAGSHIP, "--usd_per_gpu_hour=3"], "usd_per_gpu_hour: unknown key"),
        (["fit", "--model", FLAGSHIP, "--micro_batch=3"], "micro_batch: fit finds it"),
        (["model", "--model", FLAGSHIP, "--tokens_per_second=1e15"], "tokens_per_second: 1e+15 is more than"),
        (["model", "--model", FLAGSHIP, "--tokens_per_second=1e5", "--mfu=0.4"], "mfu: follows from"),
        (["model", "--model", FLAGSHIP, "--precision=fp8", "--gpu=A100-80"], "precision: A100-80 has no fp8"),
        (["fit", "--model", FLAGSHIP, "--precision=fp8", "--gpu=A100-80"], "precision: A100-80 has no fp8"),
        (
            ["model", "--model", "recipes/quickstart/pretrain.yaml", "--sharding=zero1", "--num_gpus=8"],
            "sharding: muon needs whole matrices",
        ),
        (["budget", "--flops=1e21", "--plot=/proc/nowhere"], "plot: cannot write"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    run = plan(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    if words is not None:
        assert words in run.stderr
        assert run.stdout == ""
        assert re.fullmatch(r"error: [^\n]+\n", run.stderr)


@settings(max_examples=300)
@given(text=st.text(max_size=30))
def test_quantities_are_a_number_or_one_line(text):
    try:
        value = quantity("tokens", text, 1, 1e18)
    except PlanError as error:
        assert len(str(error).splitlines()) == 1
        assert len(str(error)) < 400
    else:
        assert 1 <= value <= 1e18


@pytest.mark.parametrize(
    ("text", "value"),
    [("100B", 1e11), ("1.5T", 1.5e12), ("9.2e17", 9.2e17), (" 7M ", 7e6), ("1_000", 1000), ("2E", 2e18)],
)
def test_quantities(text, value):
    assert quantity("tokens", text, 1, 1e19) == pytest.approx(value)


words = st.sampled_from(
    ["0", "-1", "1", "7", "1e9", "nan", "inf", "1e400", "true", "zero1", "x", "", "100B", "0.5", "none"]
)


@pytest.mark.slow
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["model", "fit", "serve", "budget", "search"]))
def test_any_value_of_any_option_is_an_answer_or_one_line(data, name, capsys):
    from dataclasses import fields

    options = [
        field.name
        for field in fields(COMMANDS[name].settings)
        if field.name not in ("json", "plot", "emit", "model")
    ]
    chosen = data.draw(st.lists(st.sampled_from(options), max_size=4, unique=True))
    arguments = [name, *(EXAMPLES[name] if "flops" not in chosen else []), "--json"]
    arguments += [f"--{option}={data.draw(words)}" for option in chosen]
    if name == "search":
        arguments += ["--top=1"] * ("top" not in chosen)
    try:
        main(arguments)
    except FoundryError as error:
        assert len(str(error).splitlines()) == 1
        assert capsys.readouterr().out == ""
    else:
        json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))


# -------------------------------------------------------------------------------------------- pictures


@pytest.mark.slow
def test_pictures_are_written_and_are_pictures(tmp_path, capsys):
    folder = str(tmp_path / "pictures")
    main(["model", "--model", FLAGSHIP, f"--plot={folder}"])
    main(["fit", "--model", FLAGSHIP, f"--plot={folder}"])
    main(["budget", "--hours=720", "--gpu=H100", "--mfu=0.45", f"--plot={folder}"])
    drawn = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert drawn == ["plan_fit.png", "plan_flops.png", "plan_isoflop.png", "plan_loss.png", "plan_memory.png"]
    for path in (tmp_path / "pictures").iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert capsys.readouterr().out.count("drew ") == 5


def test_pictures_show_the_report(capsys):
    from modeling_foundry.planning.display import figures

    answer = report(capsys, "budget", "--flops=1e21")
    axes = figures.isoflop_figure(answer["isoflop_curves"], "besiroglu").axes[0]
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    assert [mark.get_ydata()[0] for mark in marks] == [
        curve["best"]["loss"] for curve in answer["isoflop_curves"]
    ]
    for curve in answer["isoflop_curves"]:
        assert min(point["loss"] for point in curve["points"]) >= curve["best"]["loss"] - 1e-9
    memory = report(capsys, "model", "--model", FLAGSHIP)["memory"]
    bars = figures.memory_figure(figures._one_bar(memory), memory["gpu_bytes"]).axes[0].patches
    total = memory["peak_bytes"] + memory["outside_allocator_bytes"]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(total / 2**30)


def test_a_term_has_one_colour_in_every_picture(capsys):
    from modeling_foundry.planning.display import figures
    from modeling_foundry.planning.formulas.memory import memory_terms

    answer = report(capsys, "fit", "--model", FLAGSHIP)
    bars = [(str(bar["micro_batch"]), bar["terms_bytes"], 1) for bar in answer["bars"]]
    axes = figures.memory_figure(bars, None).axes[0]
    colours = [container.patches[0].get_facecolor() for container in axes.containers]
    assert len(set(colours)) == len(colours) >= 8
    every = set()
    for sharding in ("none", "zero3"):
        for precision in ("bf16_mixed", "fp8"):
            setup = TrainingSetup(1, 8, sharding=sharding, precision=precision)
            persistent, moments = memory_terms(architecture_of(REAL["llama"]), setup)
            every |= {*persistent, *(name for terms in moments.values() for name in terms)}
    assert every < set(figures.TERM_COLOURS)
    assert len(set(figures.TERM_COLOURS.values())) == len(figures.TERM_COLOURS)


def test_a_table_of_learned_positions_bounds_the_sequence(write_config, capsys):
    gpt2 = str(write_config(REAL["gpt2"]))
    assert report(capsys, "model", "--model", gpt2)["flops"]["sequence_length"] == 1024
    with pytest.raises(PlanError, match="beyond the model's 1,024 learned positions"):
        main(["model", "--model", gpt2, "--sequence_length=1025"])


def test_a_vocabulary_other_than_the_laws_is_pointed_out(capsys):
    notes = report(capsys, "budget", "--flops=1e21", "--model", FLAGSHIP)["given"]["notes"]
    assert len(notes) == 1
    assert "151,936" in notes[0]
    assert report(capsys, "budget", "--flops=1e21", "--parameters=1B")["given"]["notes"] == []


def test_a_recipe_that_counts_in_tokens_is_planned_in_tokens(write_config, capsys):
    """The same run on any number of GPUs: accumulation and steps follow, as in training."""
    recipe = (
        "hidden_size: 64\nintermediate_size: 128\nnum_hidden_layers: 2\nnum_attention_heads: 2\nvocab_size: 512\n"
        "sequence_length: 128\nper_device_train_batch_size: 4\nmax_tokens: 1000001\nglobal_batch_tokens: 16384\n"
    )
    path = str(write_config(recipe, "pretrain.yaml"))
    for ranks in (1, 2, 8):
        answer = report(capsys, "model", "--model", path, f"--num_gpus={ranks}")
        assert answer["flops"]["tokens_per_step"] == 16384
        assert answer["training"]["tokens"] == 62 * 16384
    refused = plan("model", "--model", path, "--num_gpus=3")
    assert refused.returncode == 2
    assert "global_batch_tokens: 16,384 is no multiple of 1,536" in refused.stderr
