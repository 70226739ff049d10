"""The files that start a run on several nodes, run on this one: eight gloo ranks, two nodes of four."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from modeling_foundry.training.log.log_file import read_log
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.pretraining.test_pretraining import arguments
from tests.waits import wait_for

LAUNCH = REPOSITORY / "launch"
# What the cluster would provide: srun starts the command once a node, scontrol knows the nodes and requeues.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & nodes+=($!); done
for node in "${nodes[@]}"; do wait "$node" || code=$?; done
exit "${code:-0}"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == requeue ]]; then echo "$2" > requeued; else echo localhost; fi
"""
# The real program, started warm by the process of the tests.
ACCELERATE = """#!{python} -S
import os, sys
from multiprocessing.connection import Client
with Client({address!r}) as tests:
    tests.send((["-m", "accelerate.commands.accelerate_cli", *sys.argv[1:]], os.getcwd(), dict(os.environ)))
    code, out, err = tests.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "input.txt"
    path.write_text(SOURCE_TEXT)
    return path


@pytest.fixture
def cluster(tmp_path):
    """Environment of a job: fakes of SLURM's commands and a warm accelerate first on the path, one thread a rank."""
    commands = tmp_path / "commands"
    commands.mkdir()
    address = str(tmp_path / "warm")
    warm_start.serve_elsewhere(address)
    accelerate = ACCELERATE.format(python=sys.executable, address=address)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("accelerate", accelerate)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        **os.environ, "PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY),
        "ACCELERATE_CONFIG": "accelerate_configs/cpu_ddp.yaml", "SLURM_NNODES": "2", "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip


def free_port():
    """A job id whose port (20,000 + id % 20,000) is free."""
    for number in range(20_000):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", 20_000 + (os.getpid() + number) % 20_000))
                return os.getpid() + number
            except OSError:
                continue
    raise AssertionError("no free port")


def words(text_file, tmp_path, *more):
    """A tiny run for node.sh and slurm.sbatch: the recipe first, then settings."""
    given = arguments(text_file, tmp_path, "--eval_strategy=no", "--save_strategy=no", *more)
    drop = ("--config", "--per_device_train_batch_size")
    settings = [word for word in given if not word.startswith(drop) and not word.endswith("pretrain.yaml")]
    return ["recipes/shakespeare/pretrain.yaml", *settings, "--per_device_train_batch_size=1"]


@pytest.mark.slow
def test_eight_ranks_on_two_nodes_take_the_steps_of_one(text_file, tmp_path, cluster, launch):
    """The SLURM script as it stands; the same global batch in tokens, so one rank has the same losses."""
    common = ["--max_steps=2", "--global_batch_tokens=512", "--optimizer=adamw"]
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), *words(text_file, tmp_path / "eight", *common)],
        cwd=REPOSITORY, env=cluster, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    record = json.loads((tmp_path / "eight/pretrain/run.json").read_text())
    assert record["launch"].startswith("MULTI_CPU, 8 process(es)")
    assert record["settings"]["training"]["gradient_accumulation_steps"] == 2
    launch("pretrain", "--config", *words(text_file, tmp_path / "one", *common))
    eight, one = (
        [line["loss"] for line in read_log(tmp_path / name / "pretrain") if "loss" in line]
        for name in ("eight", "one")
    )
    assert len(eight) == 2
    assert eight == pytest.approx(one, abs=1e-4)
    assert read_log(tmp_path / "eight/pretrain")[-2]["tokens"] == 2 * 512


@pytest.mark.slow
def test_the_skypilot_file_starts_the_ranks_of_every_node(text_file, tmp_path, cluster):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    recipe, *settings = words(text_file, tmp_path, "--max_steps=1")
    cluster |= {"RECIPE": recipe, "SETTINGS": " ".join(settings), "PORT": str(20_000 + free_port() % 20_000)}
    cluster |= {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_NODES": "2"}
    nodes = [
        subprocess.Popen(
            ["bash", "-c", task["run"]], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**cluster, "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_GPUS_PER_NODE": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert "MULTI_CPU, 2 process(es)" in json.loads((tmp_path / "pretrain/run.json").read_text())["launch"]


def test_the_skypilot_file_names_what_exists():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "resources", "workdir", "envs", "setup", "run"}
    assert all((REPOSITORY / task["envs"][name]).is_file() for name in ("RECIPE", "ACCELERATE_CONFIG"))
    kind, number = task["resources"]["accelerators"].split(":")
    assert (kind, int(number)) == ("H200", 8)


def test_the_slurm_script_asks_for_one_launcher_a_node_and_a_signal_before_the_end():
    options = dict(
        re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    )
    assert options["ntasks-per-node"] == "1"
    assert options["gpus-per-node"] == "8"
    assert options["signal"].startswith("B:USR2@"), "to the script alone: srun would pass it to the launcher"
    assert "requeue" in options


@pytest.mark.parametrize("exit_code", [75, 69])
def test_the_signal_of_slurm_reaches_rank_0_and_only_a_saved_run_is_requeued(tmp_path, cluster, exit_code):
    """With a stand-in for the ranks: it says its process id, waits for the signal, and says how it ended."""
    run = tmp_path / "run"
    (run / "heartbeats").mkdir(parents=True)
    ranks = (
        "import json, os, signal, sys, time\n"
        "def end(*_):\n"
        f"    json.dump({{'exit_code': {exit_code}}}, open('{run}/stopped.json', 'w'), indent=1)\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGUSR2, end)\n"
        f"json.dump({{'pid': os.getpid()}}, open('{run}/heartbeats/rank-0.json', 'w'))\n"
        "time.sleep(10_000)\n"
    )
    (tmp_path / "commands/srun").write_text(f"#!{sys.executable}\n{ranks}")
    (tmp_path / "recipe.yaml").write_text("output_dir: elsewhere  # replaced\n")
    job = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), "recipe.yaml", f"--output_dir={run}"],
        cwd=tmp_path,
        env=cluster,
    )
    sign = run / "heartbeats/rank-0.json"
    wait_for(lambda: sign.exists() and sign.read_text(), job)
    os.kill(job.pid, 12)
    assert job.wait() == 1
    assert (tmp_path / "requeued").exists() == (exit_code == 75)


@pytest.mark.parametrize("name", ["node.sh", "slurm.sbatch"])
def test_the_scripts_are_valid_and_ask_for_a_recipe(name, cluster):
    cluster |= {"NODE_RANK": "0", "NUM_NODES": "1", "HEAD_NODE": "localhost"}
    done = subprocess.run(
        ["bash", str(LAUNCH / name)], cwd=REPOSITORY, env=cluster, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "give a pretrain.yaml" in done.stderr
