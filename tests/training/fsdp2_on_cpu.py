"""Run a recipe under FSDP2 on CPU ranks, for tests: ``accelerate launch --config_file … fsdp2_on_cpu.py SCRIPT …``.

accelerate reads its FSDP settings on GPU ranks only.  Here it is told that gloo ranks are such; all the rest (the
plugin, fully_shard, clipping, the state dicts) is what runs on GPUs.
"""

import runpy
import sys

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


def gloo_as_gpus(*_, **__):
    return "gloo", DistributedType.MULTI_GPU


def stay_on_the_cpu(state):
    state.device = torch.device("cpu")


if __name__ == "__main__":
    PartialState._prepare_backend, PartialState.set_device = gloo_as_gpus, stay_on_the_cpu
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
