"""Runs on GPUs that are killed, signalled, stuck or go on with fewer ranks, beside one that nothing happened to.

    python benchmarks/pretrain_recovery.py                  # all GPUs of the machine, about five minutes
    python benchmarks/pretrain_recovery.py --num_ranks=1
    python benchmarks/pretrain_recovery.py --use_cpu=true   # two CPU ranks

The recipe is recipes/pretrain.py with a small model, layers compiled, in bf16.  Under each topology the same run is made
whole, whole again (does the hardware repeat itself?), and with something done at a random step: SIGKILL, SIGUSR2 or
SIGSTOP to one rank, SIGTERM to the launcher; each is then started again with the same command.  One more goes on from its
middle on a single rank.  All run side by side, so nothing here is a speed.  The table comes last; the result
goes to runs/benchmarks/pretrain_recovery.json.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from benchmarks.pretrain_speed import gpu_state, gpus, prepare_data, recipe_environment  # noqa: E402
from modeling_foundry.files import sha256_of_file  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import parse, run  # noqa: E402
from modeling_foundry.training.log.log_file import LOG_NAME, read_log  # noqa: E402

STEPS, SAVED_EACH = 24, 8
GLOBAL_SEQUENCES = 8
# The other ranks of a stuck one end after so long.
STALL_SECONDS = 20
SMALL = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 4096, "sequence_length": 512,
    "loss_chunk_tokens": 1024, "global_batch_tokens": GLOBAL_SEQUENCES * 512, "warmup_steps": 4,
    "max_steps": STEPS, "save_steps": SAVED_EACH, "keep_checkpoints": 10, "logging_steps": 1,
    "eval_strategy": "no", "dataloader_num_workers": 1, "stall_timeout_seconds": STALL_SECONDS,
    "per_device_train_batch_size": 2, "report_to": "none",
    "gradient_accumulation_steps": 1,  # takes the recipe's away: it follows from global_batch_tokens
}  # fmt: skip
CPU = {
    "use_cpu": "true", "bf16": "false", "compile_layers": "false", "hidden_size": 64, "num_hidden_layers": 2,
    "intermediate_size": 128, "head_dim": 32, "sequence_length": 64, "global_batch_tokens": GLOBAL_SEQUENCES * 64,
}  # fmt: skip
DROPOUT = "--attention_dropout=0.1"


@dataclass(frozen=True)
class Topology:
    """A file of accelerate_configs, and what the recipe is told beside."""

    file: str
    words: tuple[str, ...] = ()


DETERMINISTIC = "--full_determinism=true"
TOPOLOGIES = {
    "ZeRO-1": Topology("zero1", (DETERMINISTIC,)),
    "DDP, dropout": Topology("ddp", (DETERMINISTIC, DROPOUT)),
    "FSDP2": Topology("fsdp2", (DETERMINISTIC,)),
    "DDP, dropout, kernels free to choose": Topology("ddp", (DROPOUT,)),
}
ON_CPU = {"DDP, dropout": Topology("cpu_ddp", (DROPOUT,))}


@dataclass
class Settings:
    """What to run."""

    topologies: list[str] = field(
        default_factory=list, metadata={"help": f"of {', '.join(TOPOLOGIES)}; default all"}
    )
    num_ranks: int = field(default=0, metadata={"help": "ranks of a run, default one a GPU"})
    use_cpu: bool = field(default=False, metadata={"help": "two ranks on the CPU"})
    seed: int = field(default=0, metadata={"help": "of the steps and ranks at which something is done"})
    limit_seconds: int = field(default=150, metadata={"help": "time one start may take"})
    at_once: int = field(default=10, metadata={"help": "runs at one time"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})


@dataclass
class Runs:
    """The runs of one topology, in folders of their own."""

    folder: Path
    topology: Topology
    num_ranks: int
    settings: Settings

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def start(self, name: str, num_ranks: int | None = None) -> subprocess.Popen:
        """The recipe under its launcher; what it prints goes to ``name.txt``."""
        command = [
            "accelerate", "launch", f"--config_file=accelerate_configs/{self.topology.file}.yaml",
            f"--num_processes={num_ranks or self.num_ranks}", "--main_process_port=0", "recipes/pretrain.py",
            "--config=recipes/qwen3_1.8b/pretrain.yaml", f"--data_dir={self.folder.parent}/data",
            f"--output_dir={self.folder / name}", *self.topology.words,
            *(f"--{key}={value}" for key, value in (SMALL | (CPU if self.settings.use_cpu else {})).items()),
        ]  # fmt: skip
        with open(self.folder / f"{name}.txt", "a") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=recipe_environment(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def end(self, process: subprocess.Popen) -> int:
        """The launcher's exit code; 124 where it took longer than it may, and all its ranks are killed."""
        try:
            return process.wait(self.settings.limit_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 124

    def finish(self, name: str, num_ranks: int | None = None) -> int:
        return self.end(self.start(name, num_ranks))

    def await_step(self, name: str, process: subprocess.Popen, step: int) -> None:
        """Wait until the log holds the step."""
        until = time.monotonic() + self.settings.limit_seconds
        while newest_step(self.folder / name) < step and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)

    def compared(self, name: str) -> dict[str, Any]:
        """The finished run beside the whole one."""
        if not (self.folder / name / "complete.json").exists():
            return {"failure": last_line(self.folder / f"{name}.txt")}
        ours, theirs = (losses(self.folder / each) for each in (name, "whole"))
        apart = [abs(loss / theirs[step] - 1) for step, loss in ours.items()]
        ends = [self.folder / each / f"checkpoint-{STEPS}" for each in (name, "whole")]
        return {
            "steps_in_log": len(ours),
            "equal_losses": ours == theirs,
            "largest_loss_difference": max(apart),
            "equal_weights": have_equal_files("model*.safetensors", *ends),
            "equal_optimizer": have_equal_files("optimizer*.safetensors", *ends),
        }


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    known = ON_CPU if settings.use_cpu else TOPOLOGIES
    num_ranks = settings.num_ranks or (2 if settings.use_cpu else len(gpus()))
    chosen = {name: known[name] for name in settings.topologies or known}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(settings.at_once) as pool:
        prepare_data(Path(folder))
        runs = {
            name: Runs(Path(folder, f"topology-{number}"), topology, num_ranks, settings)
            for number, (name, topology) in enumerate(chosen.items())
        }
        whole = {name: pool.submit(each.finish, "whole") for name, each in runs.items()}
        made = {
            (name, scenario): pool.submit(tried, happens, runs[name], scenario)
            for name, future in whole.items()
            if future.result() == 0
            for scenario, happens in SCENARIOS.items()
            if num_ranks > 1 or scenario not in FOR_SEVERAL_RANKS
        }
        for name, future in whole.items():
            if future.result():
                failure = f"exit {future.result()}: {last_line(runs[name].folder / 'whole.txt')}"
                rows.append({"topology": name, "scenario": "whole", "failure": failure})
        for (name, scenario), row in made.items():
            facts = {"topology": name, "num_ranks": num_ranks, "scenario": scenario}
            rows.append(facts | row.result())
            results.save_result("pretrain_recovery", result_of(rows, settings))
    print_table(rows)
    results.finish("pretrain_recovery", result_of(rows, settings), settings.receipt)
    return 1 if any("failure" in row for row in rows) else 0


def tried(happens: Callable[[Runs], dict[str, Any]], runs: Runs, scenario: str) -> dict[str, Any]:
    """The row of one scenario, or ``{"failure": why}``."""
    print(f"{runs.folder.name}: {scenario} …", flush=True)
    try:
        return happens(runs)
    except (OSError, ValueError, KeyError) as error:  # a file that the run should have left
        return {"failure": repr(error)[:300]}


def whole_again(runs: Runs) -> dict[str, Any]:
    runs.finish("again")
    return runs.compared("again")


def signalled(number: signal.Signals, to_launcher: bool = False) -> Callable[[Runs], dict[str, Any]]:
    """A random rank, or the launcher, gets a signal at a random step; the same command then goes on to the end."""

    def happens(runs: Runs) -> dict[str, Any]:
        name = number.name
        chance = random.Random(f"{runs.settings.seed} {runs.folder.name} {name}")
        step, rank = chance.randint(SAVED_EACH + 1, STEPS - 4), chance.randrange(runs.num_ranks)
        process = runs.start(name)
        runs.await_step(name, process, step)
        sign = json.loads((runs.folder / name / "heartbeats" / f"rank-{rank}.json").read_text())
        os.kill(process.pid if to_launcher else sign["pid"], number)
        sent = time.monotonic()
        code = runs.end(process)
        seconds = time.monotonic() - sent
        stopped = runs.folder / name / "stopped.json"
        said = json.loads(stopped.read_text()) if stopped.exists() else {}
        output = (runs.folder / f"{name}.txt").read_text()
        runs.finish(name)
        return {
            "at_step": step,
            "to": "launcher" if to_launcher else f"rank {rank}",
            "launcher_exit_code": code,
            "seconds_to_end": round(seconds, 1),
            "stopped": said | {"reason": said.get("reason", "").replace(str(runs.folder), "…")},
            **({} if said else {"output": output[-3000:]}),
            "went_on_from": went_on_from(runs.folder / f"{name}.txt"),
            **runs.compared(name),
        }

    return happens


def on_one_rank(runs: Runs) -> dict[str, Any]:
    """The middle of the whole run, gone on with on a single rank: the same samples, summed in another order."""
    target = runs.folder / "one_rank"
    shutil.copytree(runs.folder / "whole", target)
    for path in (target / "model", *(target / f"checkpoint-{step}" for step in (2 * SAVED_EACH, STEPS))):
        shutil.rmtree(path)
    (target / "complete.json").unlink()
    runs.finish("one_rank", num_ranks=1)
    return {"went_on_from": went_on_from(runs.folder / "one_rank.txt"), **runs.compared("one_rank")}


SCENARIOS: dict[str, Callable[[Runs], dict[str, Any]]] = {
    "whole again": whole_again,
    "SIGKILL": signalled(signal.SIGKILL),
    "SIGUSR2": signalled(signal.SIGUSR2),
    "SIGTERM": signalled(signal.SIGTERM, to_launcher=True),
    "SIGSTOP": signalled(signal.SIGSTOP),
    "on one rank": on_one_rank,
}
FOR_SEVERAL_RANKS = ("SIGTERM", "SIGSTOP", "on one rank")  # one rank has a launcher that passes nothing on


def newest_step(run_folder: Path) -> int:
    """The step of the log's last whole line, 0 before there is one."""
    lines = read_log(run_folder) if (run_folder / LOG_NAME).exists() else []
    return lines[-1]["step"] if lines else 0


def losses(run_folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_log(run_folder) if line["event"] == "train"}


def have_equal_files(pattern: str, ours: Path, theirs: Path) -> bool:
    hashes = [[sha256_of_file(path) for path in sorted(end.glob(pattern))] for end in (ours, theirs)]
    return hashes[0] == hashes[1] != []


def went_on_from(output: Path) -> str | None:
    """The last checkpoint that a start said it goes on from."""
    words = output.read_text().split("going on from ")
    return words[-1].split()[0].rstrip(",:;.") if len(words) > 1 else None


def last_line(output: Path) -> str:
    lines = [line for line in output.read_text().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if "Error: " in line] or lines or ["no output"])[-1][:300]


def result_of(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    return {
        "command": "python benchmarks/pretrain_recovery.py" + (" --use_cpu=true" if settings.use_cpu else ""),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "gpu_state": None if settings.use_cpu else gpu_state(),
        "convention": "differences of losses are relative to the whole run's, the largest of all steps",
        "rows": rows,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'':50} {'step':>4} {'to':8} {'code':>4} {'s':>5} {'goes on from':14} losses  weights optimizer"
    )
    for row in rows:
        name = f"{row['topology']}, {row['scenario']}"
        if "failure" in row:
            print(f"{name:50} failed: {row['failure']}")
            continue
        stopped = row.get("stopped", {})
        equal = ["equal" if row[f"equal_{what}"] else "differ" for what in ("losses", "weights", "optimizer")]
        if not row["equal_losses"]:
            equal[0] = f"{row['largest_loss_difference']:.1e}"
        print(
            f"{name:50} {row.get('at_step', ''):>4} {row.get('to', ''):8} {stopped.get('exit_code', ''):>4} "
            f"{row.get('seconds_to_end', ''):>5} {row.get('went_on_from') or '':14} {equal[0]:7} {equal[1]:7} {equal[2]}"
        )
        if stopped.get("reason"):
            print(f"    {stopped['reason']}")


if __name__ == "__main__":
    run(main)
