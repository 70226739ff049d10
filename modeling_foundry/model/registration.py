"""Registers the Auto classes at the moment transformers' own are loaded.

Importing transformers' model classes takes seconds, and planning needs none of them.  So a finder on
``sys.meta_path`` waits for the modules that define AutoConfig and the AutoModels and registers as soon as
they have run; where they are loaded already, registration is immediate.  Nobody can hold an Auto class that
does not know ``model_type: foundry``.
"""

import functools
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
AUTO_MODEL = "transformers.models.auto.modeling_auto"
OUR_CONFIG = f"{__package__}.configuration_foundry"
OUR_MODEL = f"{__package__}.modeling_foundry"
# May be half loaded when the Auto classes appear, and our configuration and model need them whole.
NEEDED_BY_CONFIG = ("transformers.configuration_utils", OUR_CONFIG)
NEEDED_BY_MODEL = (
    *NEEDED_BY_CONFIG,
    "transformers.generation.utils",
    "transformers.modeling_layers",
    "transformers.modeling_utils",
    OUR_MODEL,
)
WATCHED = (AUTO_CONFIG, AUTO_MODEL, *NEEDED_BY_MODEL)


def register_when_transformers_loads() -> None:
    """Register now what transformers has loaded, and the rest when it loads it."""
    if not any(isinstance(finder, Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watcher())
    register_what_is_loaded()


def register_what_is_loaded() -> None:
    """Register the configuration once AutoConfig exists, the models once the AutoModels do."""
    if is_loaded(AUTO_CONFIG) and not any(is_loading(name) for name in NEEDED_BY_CONFIG):
        from .configuration_foundry import FoundryConfig

        sys.modules[AUTO_CONFIG].AutoConfig.register("foundry", FoundryConfig, exist_ok=True)
    if is_loaded(AUTO_MODEL) and not any(is_loading(name) for name in NEEDED_BY_MODEL):
        from .modeling_foundry import FoundryConfig, FoundryForCausalLM, FoundryModel

        auto = sys.modules[AUTO_MODEL]
        auto.AutoModel.register(FoundryConfig, FoundryModel, exist_ok=True)
        auto.AutoModelForCausalLM.register(FoundryConfig, FoundryForCausalLM, exist_ok=True)


def is_loading(name: str) -> bool:
    """Whether a module's code is running for the first time."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False) and name not in Watcher.finished


def is_loaded(name: str) -> bool:
    """Whether a module's code has run to its end."""
    return name in sys.modules and not is_loading(name)


class Watcher(MetaPathFinder):
    """Finds the watched modules as Python would; when each has run, registers what can be registered."""

    finished: set[str] = set()  # noqa: RUF012 - shared: modules are loaded once a process

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name not in WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module = self._then_register(spec.loader.exec_module)  # type: ignore
                return spec
        return None

    def _then_register(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        @functools.wraps(execute)
        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            self.finished.add(module.__name__)
            register_what_is_loaded()

        return execute_and_register
