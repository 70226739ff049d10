"""Why the quickstart has these sizes and this optimizer: alternatives with the same training time.

    make data && .venv/bin/python benchmarks/quickstart_choices.py

Each variant is the shipped recipe with overrides.  A probe of 20 steps says how many steps fit into the time the
shipped recipe needs; then the variant trains for that many, with its own cosine, and its held-out loss counts.
Writes benchmarks/receipts/quickstart_choices.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from modeling_foundry.files import write_atomically
from modeling_foundry.run_record import describe_machine, git_commit, package_versions

ROOT = Path(__file__).resolve().parent.parent
RECEIPT = ROOT / "benchmarks" / "receipts" / "quickstart_choices.json"
SHIPPED_STEPS, PROBE_STEPS = 300, 20
WIDE = [
    "--hidden_size=384",
    "--intermediate_size=1024",
    "--num_attention_heads=12",
    "--num_key_value_heads=4",
]
VARIANTS = {
    "shipped (Muon, 4 x 192)": [],
    "AdamW 0.003": ["--optimizer=adamw", "--learning_rate=0.003"],
    "AdamW 0.01": ["--optimizer=adamw", "--learning_rate=0.01"],
    "twice as wide (4 x 384)": WIDE,
    "twice as deep (8 x 192)": ["--num_hidden_layers=8"],
}
LIMIT_SECONDS = 900


def main() -> None:
    rows: dict[str, dict[str, float]] = {}
    budget = None
    for name, overrides in VARIANTS.items():
        probe = median(
            line["step_seconds"] for line in train(overrides, PROBE_STEPS) if "step_seconds" in line
        )
        budget = budget or probe * SHIPPED_STEPS
        steps = round(budget / probe)
        lines = train(overrides, steps)
        rows[name] = {
            "steps": steps,
            "training_seconds": [line["training_seconds"] for line in lines if "training_seconds" in line][
                -1
            ],
            "heldout_loss": [line["eval_loss"] for line in lines if "eval_loss" in line][-1],
        }
        print(f"{name:28} {rows[name]['heldout_loss']:.4f}", flush=True)
    receipt = {
        "command": "python benchmarks/quickstart_choices.py",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "variants": {name: {"overrides": VARIANTS[name], **row} for name, row in rows.items()},
    }
    write_atomically(RECEIPT, json.dumps(receipt, indent=1) + "\n")
    print(f"\n{'variant':28} {'steps':>6} {'seconds':>8} {'held-out loss':>14}")
    for name, row in rows.items():
        print(f"{name:28} {row['steps']:6} {row['training_seconds']:8.0f} {row['heldout_loss']:14.4f}")


def train(overrides: list[str], steps: int) -> list[dict[str, float]]:
    """The log of one run of the shipped recipe with ``overrides``, measured on held-out text at its end."""
    with tempfile.TemporaryDirectory() as folder:
        run = [
            "--max_steps", str(steps), "--eval_steps", str(steps), "--save_steps", str(steps), "--eval_on_start=false",
            "--save_initial_model=false", f"--output_dir={folder}/run", "--logging_steps=5", *overrides,
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--config_file", "accelerate_configs/cpu.yaml",
            "--num_cpu_threads_per_process", str(os.cpu_count()), "recipes/pretrain.py",
            "--config", "recipes/quickstart/pretrain.yaml", *run,
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, timeout=LIMIT_SECONDS, stdout=subprocess.DEVNULL)
        return [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
