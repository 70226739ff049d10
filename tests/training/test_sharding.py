"""FSDP2 and ZeRO-1 on two CPU ranks, by the shipped configurations: what DDP computes, and whole checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_foundry.training.log.log_file import read_log
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.pretraining.test_pretraining import arguments
from tests.training.conftest import ACCELERATE

ON_CPU = Path(__file__).with_name("fsdp2_on_cpu.py")
# Everything that could differ: accumulation, checkpointed activations, the z-loss, a tied head, clipping.
COMMON = [
    "--max_steps=4", "--save_steps=2", "--eval_strategy=no", "--global_batch_tokens=512", "--z_loss_weight=0.001",
    "--max_grad_norm=0.5", "--learning_rate=0.001", "--weight_decay=0.1",
]  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "input.txt"
    path.write_text(SOURCE_TEXT)
    return path


def launch_sharded(engine, *settings):
    """One of accelerate_configs/ on two CPU ranks; neither starts with use_cpu, which makes accelerate choose DDP."""
    topology = REPOSITORY / "accelerate_configs" / f"{engine}.yaml"
    command = [*ACCELERATE, "--config_file", str(topology), "--num_processes", "2", "--mixed_precision", "no"]
    command += ["--main_process_port", "0", *([str(ON_CPU)] if engine == "fsdp2" else [])]
    command += [str(REPOSITORY / "recipes/pretrain.py"), *settings]
    finished = warm_start.run(
        [*command, "--use_cpu=false", "--bf16=false", "--ddp_backend=gloo"], cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    assert finished.returncode == 0, f"{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return finished


def field(run, name):
    return [line[name] for line in read_log(run / "pretrain") if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "optimizer"), [("fsdp2", "adamw"), ("fsdp2", "muon"), ("zero1", "adamw")])
def test_shards_compute_what_whole_copies_compute(text_file, tmp_path, launch, engine, optimizer):
    if engine == "zero1":
        pytest.importorskip("deepspeed")
    common = [*COMMON, f"--optimizer={optimizer}"]
    launch("pretrain", *arguments(text_file, tmp_path / "ddp", *common), ranks=2)
    sharded = [*common, "--gradient_checkpointing=true"]
    launch_sharded(engine, *arguments(text_file, tmp_path / engine, *sharded))
    record = json.loads((tmp_path / engine / "pretrain/run.json").read_text())
    assert record["launch"].startswith({"fsdp2": "FSDP", "zero1": "DEEPSPEED"}[engine] + ", 2 process(es)")
    for name in ("loss", "z_loss", "grad_norm"):
        ours, theirs = (field(tmp_path / run, name) for run in (engine, "ddp"))
        assert len(ours) == 4
        assert ours == pytest.approx(theirs, rel=1e-5), name
    ours, theirs = (load_file(tmp_path / run / "pretrain/model/model.safetensors") for run in (engine, "ddp"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_an_fsdp2_checkpoint_is_whole_carries_its_code_and_is_resumed_from(text_file, tmp_path):
    settings = arguments(text_file, tmp_path, *COMMON)
    assert "9 of 9 checks passed" in launch_sharded("fsdp2", *settings).stdout
    run = tmp_path / "pretrain"
    whole = field(tmp_path, "loss"), load_file(run / "model/model.safetensors")
    for folder in (run / "checkpoint-4", run / "model"):
        shutil.rmtree(folder)
    (run / "complete.json").unlink()

    # In a process without the package: the code beside the weights is all there is.
    code = (
        "import sys; from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, model.num_parameters(), 'modeling_foundry' in sys.modules)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(run / "checkpoint-2")], cwd=tmp_path, capture_output=True, text=True,
        env={**environment, "HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    name, parameters, imported = loaded.stdout.split()
    assert (name, imported) == ("FoundryForCausalLM", "False")
    assert int(parameters) == sum(tensor.numel() for tensor in whole[1].values())

    assert "going on from checkpoint-2" in launch_sharded("fsdp2", *settings).stdout
    assert field(tmp_path, "loss") == whole[0]
    resumed = load_file(run / "model/model.safetensors")
    assert all(torch.equal(resumed[key], whole[1][key]) for key in whole[1])
