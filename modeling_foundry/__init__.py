"""Plan, pretrain, align, evaluate and publish Qwen3-style language models on the Hugging Face stack.

Importing this package registers ``model_type: foundry`` with transformers' Auto classes without importing
transformers or torch: see :mod:`modeling_foundry.model.registration`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .model.registration import register_when_transformers_loads

if TYPE_CHECKING:
    from .model.configuration_foundry import FoundryConfig
    from .model.modeling_foundry import FoundryForCausalLM, FoundryModel, FoundryPreTrainedModel

__version__ = "0.1.0"

_MODULE_OF_NAME = {
    "FoundryConfig": "model.configuration_foundry",
    "FoundryForCausalLM": "model.modeling_foundry",
    "FoundryModel": "model.modeling_foundry",
    "FoundryPreTrainedModel": "model.modeling_foundry",
}

__all__ = ["FoundryConfig", "FoundryForCausalLM", "FoundryModel", "FoundryPreTrainedModel", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_when_transformers_loads()
