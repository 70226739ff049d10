"""Loss of fp8 training beside bf16 training: the flagship recipe, the same data in the same order, real text.

    python benchmarks/float8_parity.py --data_dir=runs/corpus/data       # on a CUDA machine, about seven minutes

Processes of recipes/pretrain.py, equal but for ``--float8``, and one more of bf16 that rounds its loss otherwise.  ``data_dir`` is a folder written by
recipes/prepare_data.py with the Qwen3 tokenizer, so that all 151,936 rows of the head take part.  The table shows the mean
training loss of the last fifty steps and the held-out loss; the result goes to runs/benchmarks/float8_parity.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.pretrain_speed import recipe_environment  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import parse, run  # noqa: E402

LAST_STEPS = 50
# The third run differs from the first in rounding alone: how far apart two equal runs drift.
VARIANTS = {"bf16": [], "fp8": ["--float8=true"], "bf16, other rounding": ["--loss_chunk_tokens=2048"]}


@dataclass
class Settings:
    """How long to train, and on what."""

    data_dir: str = field(metadata={"help": "tokens of real text, written by recipes/prepare_data.py"})
    steps: int = field(default=500, metadata={"help": "optimizer steps"})
    micro_batch: int = field(default=4, metadata={"help": "sequences of 2,048 tokens of a step"})
    limit_seconds: int = field(default=200, metadata={"help": "time one process may take"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in VARIANTS.items():
            print(f"training in {name} …", flush=True)
            rows[name] = train(settings, Path(folder, name), overrides)
            results.save_result("float8_parity", result_of(rows, settings))
    print_table(dict(rows))
    results.finish("float8_parity", result_of(rows, settings), settings.receipt)
    return 1 if any("failure" in row for row in rows.values()) else 0


def train(settings: Settings, output: Path, overrides: list[str]) -> dict[str, Any]:
    command = [
        "accelerate", "launch", "--config_file=accelerate_configs/single_gpu.yaml", "recipes/pretrain.py",
        "--config=recipes/qwen3_1.8b/pretrain.yaml", f"--data_dir={Path(settings.data_dir).resolve()}",
        f"--output_dir={output}", f"--max_steps={settings.steps}", "--gradient_accumulation_steps=1",
        f"--per_device_train_batch_size={settings.micro_batch}", f"--eval_steps={settings.steps}",
        "--per_device_eval_batch_size=8", "--max_eval_sequences=64", "--warmup_steps=50", "--logging_steps=1",
        "--save_strategy=no", *overrides,
    ]  # fmt: skip
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=recipe_environment(),
            capture_output=True, text=True, timeout=settings.limit_seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failure": f"more than {settings.limit_seconds} s"}
    if process.returncode:
        return {"failure": process.stderr.strip().splitlines()[-1][:300], "stderr": process.stderr[-3000:]}
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    held_out = next(line["eval_loss"] for line in reversed(lines) if "eval_loss" in line)
    return {"losses": losses, "held_out_loss": held_out}


def mean_of_last(losses: list[float]) -> float:
    return sum(losses[-LAST_STEPS:]) / len(losses[-LAST_STEPS:])


def result_of(rows: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {
        "command": f"python benchmarks/float8_parity.py --data_dir=… --steps={settings.steps} --micro_batch={settings.micro_batch}",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "rows": rows,
    }


def print_table(rows: dict[str, Any]) -> None:
    print(
        f"\n{'':20} {'steps':>6} {'first loss':>11} {f'mean of last {LAST_STEPS}':>16} {'held-out loss':>14}"
    )
    for name, row in rows.items():
        if "failure" in row:
            print(f"{name:20} failed: {row['failure']}")
            continue
        losses = row["losses"]
        print(
            f"{name:20} {len(losses):6} {losses[0]:11.4f} {mean_of_last(losses):16.4f} {row['held_out_loss']:14.4f}"
        )
    if any("failure" in row for row in rows.values()):
        return
    bf16 = rows.pop("bf16")
    for name, row in rows.items():
        print(
            f"{name} over bf16: training {mean_of_last(row['losses']) / mean_of_last(bf16['losses']) - 1:+.2%}, "
            f"held-out {row['held_out_loss'] / bf16['held_out_loss'] - 1:+.2%}"
        )


if __name__ == "__main__":
    run(main)
