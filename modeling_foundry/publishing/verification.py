"""The proof that strangers can load an export: a fresh process without this package gets the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..settings import FoundryError

# Runs where `modeling_foundry` cannot be imported, as on a stranger's machine.  Custom code is trusted
# because this very program has just written it.
STRANGER = """
import json, sys
sys.modules["modeling_foundry"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, probe, trust = sys.argv[1], load_file(sys.argv[2]), sys.argv[3] == "foundry"
torch.set_num_threads(int(sys.argv[4]))
AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()
with torch.inference_mode():
    difference = (model(probe["tokens"]).logits - probe["logits"]).abs().max().item()
print(json.dumps({"model_class": type(model).__name__, "max_logit_difference": difference}))
"""
PROBE_SHAPE = (2, 32)
TOLERANCE = 1e-5  # fp32; the same arithmetic, but kernels may differ with memory alignment


def verify(checkpoint: Path, export: Path, family: str) -> dict[str, Any]:
    """Load ``export`` in a fresh process and compare its fp32 logits with the trained checkpoint's.

    Returns:
        ``model_class``, ``max_logit_difference`` and ``num_probe_tokens``.

    Raises:
        FoundryError: it does not load without this package, or its logits differ.
    """
    import torch
    from safetensors.torch import save_file

    from ..modeling_foundry import FoundryForCausalLM
    from ..saved_model import load_model

    original = load_model(checkpoint, FoundryForCausalLM, dtype=torch.float32)
    shape = (PROBE_SHAPE[0], min(PROBE_SHAPE[1], original.config.max_position_embeddings))
    tokens = torch.randint(0, original.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = original(tokens).logits
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.safetensors"
        save_file({"tokens": tokens, "logits": logits.contiguous()}, probe)
        found = _ask_a_stranger(export, probe, family, torch.get_num_threads())
    if not found["max_logit_difference"] <= TOLERANCE:  # NaN is a difference too
        raise FoundryError(
            f"{export}: logits differ from the trained model's by {found['max_logit_difference']:.3g}"
        )
    return found | {"num_probe_tokens": tokens.numel()}


def _ask_a_stranger(export: Path, probe: Path, family: str, num_threads: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as modules:
        finished = subprocess.run(
            [sys.executable, "-c", STRANGER, str(export.resolve()), str(probe), family, str(num_threads)],
            capture_output=True, text=True, cwd=modules,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": modules},
        )  # fmt: skip
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise FoundryError(f"{export}: does not load in a fresh process: {reason[:300]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])
