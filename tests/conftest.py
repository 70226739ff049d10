"""Every test runs offline, on two threads, in a clean environment."""

import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
GUARD = str(Path(__file__).parent / "offline")
# What tests train on: some 20 KB of source.
SOURCE_TEXT = "\n\n".join(
    path.read_text() for path in sorted((REPOSITORY / "modeling_foundry/settings").glob("*.py"))
)

# Before any library reads them, and inherited by every process a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault(
    "DS_ACCELERATOR", "cpu"
)  # or DeepSpeed warns, on a machine without a GPU, when it is imported
os.environ["TRACKIO_DIR"] = str(Path(tempfile.gettempdir()) / "modeling-foundry-tests-trackio")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on two cores
os.environ["PYTHONPATH"] = os.pathsep.join([GUARD, str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, GUARD)
sys.path.insert(0, str(REPOSITORY))
import sitecustomize  # noqa: E402

if not hasattr(sitecustomize, "NetworkAttemptError"):  # another sitecustomize came first at start
    import importlib

    del sys.modules["sitecustomize"]
    sitecustomize = importlib.import_module("sitecustomize")

import pytest  # noqa: E402
from hypothesis import HealthCheck  # noqa: E402
from hypothesis import settings as hypothesis_settings  # noqa: E402

# The same examples every time, so that a red run is a change of ours; --hypothesis-profile=explore draws new ones.
SHARED_MACHINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis_settings.register_profile("repeatable", derandomize=True, **SHARED_MACHINE)
hypothesis_settings.register_profile("explore", max_examples=1000, print_blob=True, **SHARED_MACHINE)
hypothesis_settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


def closed_files(folder: Path) -> list[str]:
    """Files and folders below ``folder`` of another mode than the umask gives: others could not read them."""
    mask = os.umask(0o022)
    os.umask(mask)
    kinds = {path: 0o777 if path.is_dir() else 0o666 for path in [folder, *folder.rglob("*")]}
    return [str(path) for path, mode in kinds.items() if path.lstat().st_mode & 0o777 != mode & ~mask]
