"""Tokens a second of the shipped flagship recipe on one GPU, beside stock Qwen3 in the same command.

    python benchmarks/pretrain_speed.py             # on a CUDA machine, about five minutes

Each variant is a process of its own with a time limit: ours is recipes/pretrain.py with the flagship's recipe and
overrides, stock is transformers' Qwen3ForCausalLM under the same Trainer, data and optimizer.  Tokens a second are
the median of the steps after the first ten; MFU is over the dense bf16 peak, full-attention FLOPs.  The table comes
last; with OUT set in the environment the receipt goes to $OUT/pretrain_speed.json.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import parse, run  # noqa: E402

FLOPS_PER_TOKEN = 10.32e9  # of training, full attention, 2,048 tokens: docs/plan.md
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}
WARM_STEPS = 10
RECIPE = ["--config=recipes/qwen3_1.8b/pretrain.yaml", "--gradient_accumulation_steps=1", "--logging_steps=2"]
COMMON = ["--eval_strategy=no", "--save_strategy=no", "--warmup_steps=5", "--dataloader_num_workers=2"]
VARIANTS: dict[str, list[str]] = {
    "stock, eager": ["--per_device_train_batch_size=8"],
    "stock, compiled": ["--per_device_train_batch_size=8", "--torch_compile=true"],
    "ours, fp32 + autocast": [],
    "ours, bf16 parameters": ["--model_dtype=bfloat16"],
    "ours, bf16 parameters, cuDNN": ["--model_dtype=bfloat16", "--attention_backend=cudnn"],
    "ours, bf16 parameters, not compiled": ["--model_dtype=bfloat16", "--compile_layers=false"],
}


@dataclass
class Settings:
    """What to run."""

    variants: list[str] = field(
        default_factory=lambda: list(VARIANTS), metadata={"help": "rows of the table"}
    )
    steps: int = field(default=30, metadata={"help": "optimizer steps of each"})
    limit_seconds: int = field(default=150, metadata={"help": "time one process may take"})
    measure: str = field(default="", metadata={"help": "used by the script itself: the one row to measure"})
    folder: str = field(default="", metadata={"help": "used by the script itself: where data and row are"})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if settings.measure:
        measure(settings)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        prepare_data(Path(folder))
        rows: dict[str, Any] = {}
        for name in settings.variants:
            rows[name] = measure_in_process(name, settings, folder)
            save(rows)  # after each: a lent machine may be gone before the last
            print_table({name: rows[name]})
    print_table(rows)
    return 1 if any("failure" in row for row in rows.values()) else 0


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
    subprocess.run(
        command, cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )


def measure_in_process(name: str, settings: Settings, folder: str) -> dict[str, Any]:
    print(f"measuring {name} …", flush=True)
    command = [
        sys.executable,
        __file__,
        f"--measure={name}",
        f"--folder={folder}",
        f"--steps={settings.steps}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=settings.limit_seconds
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"more than {settings.limit_seconds} s"}
    result = Path(folder, "row.json")
    if process.returncode or not result.exists():
        return {
            "failure": (process.stderr.strip().splitlines() or ["?"])[-1][:300],
            "stderr": process.stderr[-3000:],
        }
    row: dict[str, Any] = json.loads(result.read_text()) | {
        "process_seconds": round(time.perf_counter() - started, 1)
    }
    result.unlink()
    return row


def measure(settings: Settings) -> None:
    """One variant in this process; its row goes to ``row.json``."""
    import torch

    output = Path(settings.folder, "run " + settings.measure.replace(",", ""))
    words = [
        *RECIPE,
        *COMMON,
        f"--data_dir={settings.folder}/data",
        f"--output_dir={output}",
        f"--max_steps={settings.steps}",
    ]
    overrides = VARIANTS[settings.measure]
    replaced = {word.split("=")[0] for word in overrides}
    words = [word for word in words if word.split("=")[0] not in replaced] + overrides
    seconds = (train_stock if settings.measure.startswith("stock") else train_ours)(words, output)
    batch = next((int(word.split("=")[1]) for word in words if "train_batch_size" in word), 16)
    row = {
        "micro_batch": batch,
        "sequence_length": 2048,
        "step_seconds": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated(),
        "gpu": torch.cuda.get_device_name(),
    }
    Path(settings.folder, "row.json").write_text(json.dumps(row))


def train_ours(words: list[str], output: Path) -> list[float]:
    """The recipe's own script, in this process so that its peak memory can be read."""
    sys.argv = ["recipes/pretrain.py", *words]
    try:
        runpy.run_path("recipes/pretrain.py", run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line["step_seconds"] for line in lines if "step_seconds" in line and line["step"] > WARM_STEPS]


def train_stock(words: list[str], output: Path) -> list[float]:
    """transformers' Qwen3ForCausalLM, attention and loss of its own, under transformers' own Trainer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback

    from modeling_foundry.data.folder import load_prepared
    from modeling_foundry.data.packing import PackedDataset
    from modeling_foundry.training.model_settings import ModelSettings
    from modeling_foundry.training.pretraining import PretrainArguments, PretrainDataSettings

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

    Trainer(Qwen3ForCausalLM(config), arguments, train_dataset=train, callbacks=[Clock()]).train()
    return [
        later - earlier for earlier, later in zip(times[WARM_STEPS:], times[WARM_STEPS + 1 :], strict=False)
    ]


def rates(row: dict[str, Any]) -> tuple[float, float | None]:
    """Tokens a second, and MFU where the GPU's dense peak is known."""
    tokens = row["micro_batch"] * row["sequence_length"] / statistics.median(row["step_seconds"])
    peak = next((value for name, value in PEAK_FLOPS.items() if name in row["gpu"]), None)
    return tokens, peak and tokens * FLOPS_PER_TOKEN / peak


def save(rows: dict[str, Any]) -> None:
    receipt = {
        "command": "python benchmarks/pretrain_speed.py",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "convention": "full-attention training FLOPs (10.32e9 a token) over the dense bf16 peak",
        "rows": rows,
    }
    if os.environ.get("OUT"):
        write_atomically(Path(os.environ["OUT"], "pretrain_speed.json"), json.dumps(receipt, indent=1) + "\n")


def print_table(rows: dict[str, Any]) -> None:
    print(f"\n{'':36} {'batch':>5} {'tok/s':>8} {'MFU':>6} {'peak GiB':>9} {'process s':>10}")
    for name, row in rows.items():
        if "failure" in row:
            print(f"{name:36} failed: {row['failure']}")
            continue
        tokens, mfu = rates(row)
        shown = f"{mfu:6.1%}" if mfu else "     -"
        print(
            f"{name:36} {row['micro_batch']:5} {tokens:8,.0f} {shown} {row['peak_bytes'] / 2**30:9.1f} {row['process_seconds']:10.0f}"
        )


if __name__ == "__main__":
    run(main)
