"""``recipes/pretrain.py`` with one fault, which the variable FAULT describes as JSON.

kind: ``loss`` multiplies the loss of each micro-batch that holds sample ``sample`` by ``factor`` (NaN, or 50 for a
spike); ``gradient`` gives an infinite gradient under a finite loss at step ``step`` of rank ``rank``;
``evaluation`` makes the held-out loss NaN from step ``step`` on;
``slow`` sleeps ``seconds`` in each micro-batch, ``hang`` sleeps for ever at step ``step`` of rank ``rank``.

After each step every rank adds a line to ``states-rank-N.jsonl``: hashes of weights, optimizer and scheduler.
"""

import hashlib
import json
import os
import runpy
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from modeling_foundry import settings
from modeling_foundry.training.trainer import FoundryTrainer
from tests.conftest import REPOSITORY

FAULT = json.loads(os.environ["FAULT"])
if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    # accelerate shards on accelerators alone; told that these ranks have some, it shards on the CPU as well.
    set_up = PartialState.__init__

    def set_up_as_if_on_gpus(self, *args, **kwargs):
        is_first = not PartialState._shared_state
        set_up(self, *args, **kwargs)
        if is_first:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = set_up_as_if_on_gpus


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.inf


def holds(trainer, inputs, sample):
    wanted = trainer.train_dataset.dataset[sample]["input_ids"].to(inputs["input_ids"].device)
    return bool((inputs["input_ids"] == wanted).all(dim=1).any())


def spoiled(trainer, inputs, loss):
    kind = FAULT["kind"]
    here = (
        FAULT.get("rank") == trainer.args.process_index and FAULT.get("step") == trainer.state.global_step + 1
    )
    if kind == "loss" and holds(trainer, inputs, FAULT["sample"]):
        return loss * float(FAULT["factor"])
    if kind == "gradient" and here:
        return InfiniteGradient.apply(loss)
    if kind == "slow":
        time.sleep(FAULT["seconds"])
    if kind == "hang" and here:
        time.sleep(1000)
    return loss


class StateHashes(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **kwargs):
        while hasattr(optimizer, "optimizer"):  # accelerate's and DeepSpeed's wrappers
            optimizer = optimizer.optimizer
        held = [p for group in optimizer.param_groups for p in group["params"]]  # ZeRO's fp32 parts
        moments = [(name, v) for p in held for name, v in sorted(optimizer.state.get(p, {}).items())]
        line = {
            "step": state.global_step,
            "weights": digest([*model.parameters(), *held]),
            "optimizer": digest([value for _, value in moments]),
            "scheduler": lr_scheduler.last_epoch,
        }
        path = Path(args.output_dir) / f"states-rank-{args.process_index}.jsonl"
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


def digest(tensors):
    sha = hashlib.sha256()
    for tensor in tensors:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        sha.update(torch.as_tensor(whole).detach().float().numpy().tobytes())
    return sha.hexdigest()


def guard_updates(self, guard):
    sound_guard_updates(self, guard)
    self.add_callback(StateHashes())


sound_guard_updates = FoundryTrainer.guard_updates
FoundryTrainer.guard_updates = guard_updates

# Below the guard: what it sees is what a model would have given it.
sound = FoundryTrainer.__mro__[1].compute_loss


def compute_loss(self, model, inputs, *args, **kwargs):
    answer = sound(self, model, inputs, *args, **kwargs)
    loss, *outputs = answer if isinstance(answer, tuple) else (answer,)  # with its outputs where asked for
    if model.training:
        loss = spoiled(self, inputs, loss)
    elif FAULT["kind"] == "evaluation" and self.state.global_step >= FAULT["step"]:
        loss = loss * torch.nan
    return (loss, *outputs) if outputs else loss


FoundryTrainer.__mro__[1].compute_loss = compute_loss

if __name__ == "__main__":
    sys.argv[0] = str(REPOSITORY / "recipes" / "pretrain.py")
    settings.run(runpy.run_path(sys.argv[0])["main"])
