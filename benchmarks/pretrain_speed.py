"""Tokens a second of the shipped flagship recipe on one GPU, beside stock Qwen3 and Liger in the same command.

    python benchmarks/pretrain_speed.py                  # on a CUDA machine, about nine minutes
    python benchmarks/pretrain_speed.py --table=shapes   # other back ends, lengths and memory, about eight
    python benchmarks/pretrain_speed.py --table=start    # from launch to the first step, about one
    python benchmarks/pretrain_speed.py --table=scaling  # on 1, 2, 4 and 8 GPUs, about two minutes a row

Each variant is a process of its own with a time limit.  Ours is recipes/pretrain.py with the flagship's recipe under
``accelerate launch``; stock is transformers' Qwen3ForCausalLM under the same Trainer, data and optimizer; Liger is
stock with ``use_liger_kernel``.  Tokens a second of each GPU are the median of the optimizer steps after the first two;
MFU is over the dense bf16 peak.  The start is the time from launch to the log line of the first step.  Beside each peak of ours
stands the forecast that the run printed before its first step.  Two rows profile one more step, which is not counted.
The table comes last; the result goes to runs/benchmarks/pretrain_<table>.json.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.planning import training_flops_per_token  # noqa: E402
from modeling_foundry.planning.models.model_files import read_model  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import FoundryError, parse, run  # noqa: E402

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}
FLAGSHIP = "qwen3_1.8b"
WARM_STEPS = 2
SECONDS_BETWEEN_LOOKS = 4.0  # at the GPU's clock
COMMON = [
    "--logging_steps=1",
    "--eval_strategy=no",
    "--save_strategy=no",
    "--warmup_steps=5",
    "--dataloader_num_workers=2",
]
QUICK = "--gradient_accumulation_steps=4"
LAUNCHED = "PRETRAIN_SPEED_LAUNCHED"  # variable: seconds since the epoch at which a row was launched
BEGAN = time.time()
STOCK = ["--per_device_train_batch_size=8", "--gradient_accumulation_steps=8"]


@dataclass(frozen=True)
class Variant:
    """One row: the model, how it is launched, what differs from the shipped recipe, and for how many steps."""

    overrides: tuple[str, ...] = ()
    launch: str = "zero1"
    stock: bool = False
    steps: int = 6
    profiled: bool = False  # one step more, whose time does not count
    recipe: str = FLAGSHIP
    num_gpus: int = 1


SPEED = {
    "ours, as shipped (ZeRO-1)": Variant(steps=6, profiled=True),
    "ours, fp8": Variant(("--float8=true",), steps=5, profiled=True),
    "stock, eager": Variant((*STOCK,), "single_gpu", stock=True, steps=4),
    "Liger, eager": Variant((*STOCK, "--use_liger_kernel=true"), "single_gpu", stock=True, steps=4),
    "stock, compiled": Variant((*STOCK, "--torch_compile=true"), "single_gpu", stock=True, steps=4),
    "ours, bf16 parameters, no ZeRO": Variant(
        ("--model_dtype=bfloat16", QUICK), launch="single_gpu", steps=6
    ),
}
SHAPES = {
    "ZeRO-1": Variant((QUICK,), steps=5),
    "DDP": Variant((QUICK,), launch="ddp", steps=5),
    "FSDP2": Variant((QUICK,), launch="fsdp2", steps=5),
    "FSDP2, checkpointing": Variant((QUICK, "--gradient_checkpointing=true"), launch="fsdp2", steps=5),
    "ZeRO-1, S = 4,096": Variant(
        (QUICK, "--sequence_length=4096", "--per_device_train_batch_size=8"), steps=5
    ),
    "ZeRO-1, S = 8,192": Variant(
        (QUICK, "--sequence_length=8192", "--per_device_train_batch_size=4"), steps=5
    ),
    "ZeRO-1, checkpointing": Variant((QUICK, "--gradient_checkpointing=true"), steps=5),
    "ZeRO-1, not compiled": Variant(
        (QUICK, "--compile_layers=false", "--per_device_train_batch_size=8"), steps=5
    ),
    "ZeRO-1, loss in one piece": Variant((QUICK, "--loss_chunk_tokens=1000000"), steps=5),
    "ZeRO-1, micro-batch 4": Variant((QUICK, "--per_device_train_batch_size=4"), steps=5),
    "ZeRO-1, full determinism": Variant((QUICK, "--full_determinism=true"), steps=5),
    "ZeRO-1, llama2_1.36b": Variant((QUICK,), steps=5, recipe="llama2_1.36b"),
}
# The same run twice: the first compiles, the second finds the compiled kernels and Python's bytecode.
START = {
    name: Variant(("--gradient_accumulation_steps=1",), steps=4)
    for name in ("empty compile cache", "warm compile cache")
}
# The recipe as shipped; as many rows as the machine has GPUs for.
SCALING = {
    f"ZeRO-1 on {num} GPU{'s' * (num > 1)}": Variant(steps=6, num_gpus=num) for num in (1, 2, 4, 8)
} | {
    "DDP on 2 GPUs": Variant(launch="ddp", steps=5, num_gpus=2),
    "FSDP2 on 2 GPUs": Variant(launch="fsdp2", steps=5, num_gpus=2),
}
TABLES = {"speed": SPEED, "shapes": SHAPES, "start": START, "scaling": SCALING}
VARIANTS = SPEED | SHAPES | START | SCALING


@dataclass
class Settings:
    """What to run."""

    table: Literal["speed", "shapes", "start", "scaling"] = field(
        default="speed",
        metadata={"help": "beside stock, ways to run ours, how soon it starts, or on several GPUs"},
    )
    variants: list[str] = field(
        default_factory=list, metadata={"help": "rows of the table, all of them if not given"}
    )
    limit_seconds: int = field(default=200, metadata={"help": "time one process may take"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})
    measure: str = field(default="", metadata={"help": "used by the script itself: the one row to measure"})
    folder: str = field(default="", metadata={"help": "used by the script itself: where data and row are"})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if settings.measure:
        measure(settings)
        return 0
    if unknown := [name for name in settings.variants if name not in VARIANTS]:
        raise FoundryError(f"variants: {unknown[0]!r} is none of {', '.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder:
        prepare_data(Path(folder))
        rows: dict[str, Any] = {}
        for name in settings.variants or rows_for(settings.table, len(gpus())):
            rows[name] = measure_in_process(name, settings, folder)
            # After each: a lent machine may be gone before the last.
            results.save_result(f"pretrain_{settings.table}", result_of(rows, settings.table))
            print_table({name: rows[name]}, details=True)
    print_table(rows)
    results.finish(f"pretrain_{settings.table}", result_of(rows, settings.table), settings.receipt)
    return 1 if any("failure" in row for row in rows.values()) else 0


def rows_for(table: str, num_gpus: int) -> list[str]:
    return [name for name, variant in TABLES[table].items() if variant.num_gpus <= num_gpus]


def prepare_data(folder: Path) -> None:
    """Real text, this repository's own; a small tokenizer, since rows of the head are the recipe's."""
    sources = sorted(ROOT.glob("modeling_foundry/**/*.py")) + sorted(ROOT.glob("docs/*.md"))
    text = "\n".join(path.read_text() for path in sources)
    (folder / "input.txt").write_text("\n".join([text] * 12))
    command = [
        sys.executable,
        "recipes/prepare_data.py",
        f"--text_file={folder}/input.txt",
        f"--output_dir={folder}/data",
    ]
    subprocess.run(command, cwd=ROOT, check=True, env=recipe_environment(), stdout=subprocess.DEVNULL)


def measure_in_process(name: str, settings: Settings, folder: str) -> dict[str, Any]:
    print(f"measuring {name} …", flush=True)
    variant = VARIANTS[name]
    command = [
        "accelerate", "launch", f"--config_file=accelerate_configs/{variant.launch}.yaml",
        f"--num_processes={variant.num_gpus}", __file__, f"--measure={name}", f"--folder={folder}",
    ]  # fmt: skip
    cache = {
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"
    }  # the first row of a kind compiles, the next finds it
    started = time.time()
    environment = recipe_environment() | cache | {LAUNCHED: str(started)}
    errors, gpu = Path(folder, "stderr.txt"), []
    with open(errors, "w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
        first_step = watch(
            process, run_folder(folder, name) / "log.jsonl", started + settings.limit_seconds, gpu
        )
    result = Path(folder, "row.json")
    if process.returncode or not result.exists():
        reason = errors.read_text().strip().splitlines() or ["no message"]
        return {
            "failure": f"exit {process.returncode}: {reason[-1][:300]}",
            "output": "\n".join(reason)[-3000:],
        }
    row: dict[str, Any] = json.loads(result.read_text())
    result.unlink()
    return row | {
        "start_seconds": first_step and round(first_step - started, 1),
        "process_seconds": round(time.time() - started, 1),
        "gpu_samples": gpu,
    }


def watch(process: subprocess.Popen, log: Path, deadline: float, gpu: list[list[float]]) -> float | None:
    """Wait for the end, or kill at the deadline; the time at which the run log had its first line.

    ``gpu`` gets the SM clock in MHz, the power in watts and the temperature in °C, now and then: under its power
    limit a card clocks down, and cards differ.
    """
    first_step, looked = None, time.time()
    while process.poll() is None:
        if time.time() - looked > SECONDS_BETWEEN_LOOKS:
            gpu.append(
                [float(value) for value in query_gpu("clocks.sm,power.draw,temperature.gpu", "nounits")]
            )
            looked = time.time()
        if first_step is None and log.exists() and log.stat().st_size:
            first_step = time.time()
        if time.time() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.1)
    return first_step


def recipe_environment() -> dict[str, str]:
    """In which a benchmark starts a recipe: this checkout's package, no Hub."""
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": search, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # set in some images: every start compiles all imports
    return environment


def run_folder(folder: str, name: str) -> Path:
    return Path(folder, "run " + name.replace(",", "").replace("=", ""))


def measure(settings: Settings) -> None:
    """One variant in this process; the first rank's row goes to ``row.json``."""
    import torch
    import yaml

    variant, output = VARIANTS[settings.measure], run_folder(settings.folder, settings.measure)
    config = f"recipes/{variant.recipe}/pretrain.yaml"
    words = [f"--config={config}", *COMMON, f"--data_dir={settings.folder}/data", f"--output_dir={output}"]
    words += [f"--max_steps={variant.steps + variant.profiled}", *variant.overrides]
    if variant.profiled:
        words.append(f"--profile_step={variant.steps + 1}")
    more: dict[str, Any] = train_stock(words) if variant.stock else train_ours(words, output)
    more["step_seconds"] = more["step_seconds"][: variant.steps - WARM_STEPS]
    recipe = yaml.safe_load((ROOT / config).read_text())
    recipe |= dict(word.removeprefix("--").split("=", 1) for word in variant.overrides)
    row = {
        "recipe": variant.recipe,
        "num_gpus": variant.num_gpus,
        "micro_batch": int(recipe["per_device_train_batch_size"]),
        "accumulation": int(recipe["gradient_accumulation_steps"]),
        "sequence_length": int(recipe["sequence_length"]),
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "gpu": torch.cuda.get_device_name(),
    }
    row |= more
    if int(os.environ.get("RANK", "0")) == 0:
        Path(settings.folder, "row.json").write_text(json.dumps(row))


def train_ours(words: list[str], output: Path) -> dict[str, Any]:
    """The recipe's own script, in this process so that its peak memory, forecast and moments can be read."""
    from modeling_foundry.pretraining import pipeline as pretraining
    from modeling_foundry.pretraining.preflight import start

    launched, forecasts = float(os.environ[LAUNCHED]), []
    moments = {"launcher": BEGAN - launched, "imports": time.time() - launched}

    def heard(module: Any, name: str, moment: str) -> None:
        """Note when a function of the recipe has returned, and what."""
        function = getattr(module, name)

        def noted(*arguments: Any) -> Any:
            answer = function(*arguments)
            moments.setdefault(moment, time.time() - launched)
            if moment == "forecast":
                forecasts.append(answer)
            return answer

        setattr(module, name, noted)

    heard(pretraining, "training_data", "data")
    heard(pretraining, "new_model", "model")
    heard(pretraining, "pretrain_trainer", "trainer")
    heard(start, "forecast_run", "forecast")
    heard(pretraining, "before_first_step", "preflight")
    sys.argv = ["recipes/pretrain.py", *words]
    runpy.run_path("recipes/pretrain.py")["main"]()  # as a script it would end this process
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step_seconds" in line and line["step"] > WARM_STEPS]
    found: dict[str, Any] = {
        "step_seconds": [line["step_seconds"] for line in steps],
        "data_wait_seconds": [line.get("data_wait_seconds") for line in steps],
        "seconds_since_launch": {moment: round(seconds, 2) for moment, seconds in moments.items()},
    }
    if memory := forecasts[0].memory:  # of a GPU; there is none of a CPU
        found["forecast_bytes"] = memory.peak
        found["forecast_terms"] = memory.terms
        found["forecast_moment"] = memory.fullest_moment
    for path in output.glob("profile-step-*.json"):
        found["profile"] = json.loads(path.read_text())
    return found


def train_stock(words: list[str]) -> dict[str, Any]:
    """transformers' Qwen3ForCausalLM, attention and loss of its own, under transformers' own Trainer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback

    from modeling_foundry.data.sequences.packing import PackedDataset
    from modeling_foundry.data.tokens.prepared import load_prepared
    from modeling_foundry.pretraining.model_settings import ModelSettings
    from modeling_foundry.pretraining.pipeline import PretrainArguments, PretrainDataSettings

    model, data, arguments = parse(ModelSettings, PretrainDataSettings, PretrainArguments, argv=words)
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "tie_word_embeddings",
    )
    config = Qwen3Config(
        **{name: getattr(model, name) for name in names},
        max_position_embeddings=data.sequence_length,
        use_cache=False,
    )
    train = PackedDataset(
        load_prepared(Path(data.data_dir)).shard("train"), data.sequence_length, num_samples=10**6
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter())

    with torch.device(arguments.device):
        stock = Qwen3ForCausalLM(config)
    Trainer(stock, arguments, train_dataset=train, callbacks=[Clock()]).train()
    pairs = zip(times[WARM_STEPS - 1 :], times[WARM_STEPS:], strict=False)
    return {"step_seconds": [later - earlier for earlier, later in pairs]}


def rates(row: dict[str, Any]) -> tuple[float, float | None, float | None]:
    """Tokens a second of each GPU, and MFU by full and by causal attention where its dense peak is known."""
    tokens = row["micro_batch"] * row["accumulation"] * row["sequence_length"]
    speed = tokens / statistics.median(row["step_seconds"])
    peak = next((value for name, value in PEAK_FLOPS.items() if name in row["gpu"]), None)
    if peak is None:
        return speed, None, None
    model = read_model(ROOT / "recipes" / row.get("recipe", FLAGSHIP) / "pretrain.yaml").architecture
    full, causal = (
        speed * training_flops_per_token(model, row["sequence_length"], convention) / peak
        for convention in ("full", "causal")
    )
    return speed, full, causal


def result_of(rows: dict[str, Any], table: str) -> dict[str, Any]:
    return {
        "command": f"python benchmarks/pretrain_speed.py --table={table}",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "convention": "training FLOPs with full and with causal attention, over the dense bf16 peak",
        "gpu_state": gpu_state(),
        "rows": rows,
    }


def gpu_state() -> str:
    """Name, driver, power limit and temperature, as the driver reports them."""
    return ", ".join(query_gpu("name,driver_version,power.limit,power.draw,temperature.gpu,clocks.max.sm"))


def gpus() -> list[str]:
    """A line a GPU, as the driver lists them."""
    command = ["nvidia-smi", "--list-gpus"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def query_gpu(names: str, *options: str) -> list[str]:
    """What the driver says of the first GPU."""
    style = ",".join(["csv", "noheader", *options])
    command = ["nvidia-smi", "--id=0", f"--query-gpu={names}", f"--format={style}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(", ")


def print_table(rows: dict[str, Any], details: bool = False) -> None:
    print(
        f"\n{'':32} {'batch':>7} {'S':>6} {'tok/s':>8} {'MFU':>6} {'causal':>6} {'peak GiB':>8} {'forecast':>8} "
        f"{'start s':>7}"
    )
    for name, row in rows.items():
        if "failure" in row:
            print(f"{name:32} failed: {row['failure']}")
            continue
        tokens, *mfu = rates(row)
        shown = " ".join(f"{share:6.1%}" if share else "     -" for share in mfu)
        batch = f"{row['micro_batch']}x{row['accumulation']}"
        start = f"{row['start_seconds']:7.1f}" if row["start_seconds"] else "      -"
        error = (
            f"{row['forecast_bytes'] / row['peak_bytes'] - 1:+8.1%}" if "forecast_bytes" in row else " " * 8
        )
        print(
            f"{name:32} {batch:>7} {row['sequence_length']:6,} {tokens:8,.0f} {shown} "
            f"{row['peak_bytes'] / 2**30:8.1f} {error} {start}"
        )
    for name, row in rows.items() if details else ():
        if "seconds_since_launch" in row:
            moments = ", ".join(f"{moment} {at:.1f}" for moment, at in row["seconds_since_launch"].items())
            print(f"{name}: seconds from launch to {moments}, first step {row['start_seconds']}")
        if row.get("data_wait_seconds"):
            waits = ", ".join(f"{1000 * wait:.0f}" for wait in row["data_wait_seconds"] if wait is not None)
            most = max(watts for _, watts, _ in row["gpu_samples"])
            clocks = sorted(clock for clock, watts, _ in row["gpu_samples"] if watts > most / 2)
            print(f"{name}: data wait {waits} ms a step; SM clocks at work {clocks} MHz")
        if "profile" in row:
            print_profile(name, row["profile"])


def print_profile(name: str, profile: dict[str, Any]) -> None:
    span, parts = profile["span_milliseconds"], profile["micro_batches"]
    print(f"\n{name}: one optimizer step, {span / parts:.1f} ms a micro-step")
    for group, found in profile["groups"].items():
        time_share = found["milliseconds"] / span
        print(
            f"  {group:24} {found['milliseconds'] / parts:8.1f} ms {time_share:6.1%} {found['launches']:7,}"
        )
    idle = span - profile["busy_milliseconds"]
    print(f"  {'no kernel running':24} {idle / parts:8.1f} ms {idle / span:6.1%}")
    for place, found in profile["longest_waits"].items():
        print(f"    {found['milliseconds']:8.1f} ms in {found['gaps']:4} gaps: {place}")


if __name__ == "__main__":
    run(main)
