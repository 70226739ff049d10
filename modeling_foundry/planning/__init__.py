"""What a model will cost, whether it fits, and what to train: arithmetic only, without torch.

>>> from modeling_foundry.planning import read_model, count_parameters, training_flops_per_token
"""

from .formulas.flops import count_flops, training_flops_per_token
from .formulas.hardware import GPUS, Gpu, find_gpu, gpu_of_device
from .formulas.memory import TrainingSetup, forecast_memory
from .formulas.parameters import count_parameters
from .models.families import architecture_of
from .models.fields import PlanError
from .models.model_files import ModelFile, read_model

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
