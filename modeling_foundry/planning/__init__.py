"""What a model will cost, whether it fits, and what to train: arithmetic only, without torch.

>>> from modeling_foundry.planning import read_model, count_parameters, training_flops_per_token
"""

from .families import architecture_of
from .fields import PlanError
from .flops import count_flops, training_flops_per_token
from .hardware import GPUS, Gpu, find_gpu, gpu_of_device
from .memory import TrainingSetup, forecast_memory
from .model_files import ModelFile, read_model
from .parameters import count_parameters

__all__ = [
    "GPUS",
    "Gpu",
    "ModelFile",
    "PlanError",
    "TrainingSetup",
    "architecture_of",
    "count_flops",
    "count_parameters",
    "find_gpu",
    "forecast_memory",
    "gpu_of_device",
    "read_model",
    "training_flops_per_token",
]
