"""The Triton kernels of the loss, run on the CPU by Triton's interpreter, against the PyTorch path."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton is not installed")
SCRIPT = """
import json, sys
import torch
from modeling_foundry.model import losses, softmax_kernels as kernels

worst = {"loss": 0.0, "gradient": 0.0, "kept": True}
generator = torch.Generator().manual_seed(0)
for num_tokens, num_columns, z, spread in json.loads(sys.argv[1]):
    logits = (torch.randn(num_tokens, num_columns, generator=generator) * spread).bfloat16()
    targets = torch.randint(0, num_columns, (num_tokens,), generator=generator)
    targets[0], targets[-1] = 0, num_columns - 1
    counts = torch.rand(num_tokens, generator=generator) > 0.2
    scale = counts / 7.0
    expected, normalizers, gradient = losses._softmax_part(logits.clone(), targets[:, None], scale, z, True)
    written = logits.clone()
    ours, ours_normalizers = kernels.softmax_cross_entropy_(written, targets, scale, z, True)
    unchanged = logits.clone()
    again, _ = kernels.softmax_cross_entropy_(unchanged, targets, scale, z, False)
    worst["kept"] &= torch.equal(unchanged, logits) and torch.equal(again, ours)
    relative = lambda a, b: ((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-9)).item()
    worst["loss"] = max(worst["loss"], relative(ours, expected), relative(ours_normalizers, normalizers))
    worst["gradient"] = max(worst["gradient"], relative(written, gradient))
print(json.dumps(worst))
"""


@pytest.mark.slow
def test_the_kernels_equal_the_pytorch_path():
    """Sizes around the block of 4,096 columns; large logits too."""
    cases = [(3, 50, 0.0, 2.0), (70, 130, 1e-2, 2.0), (2, 4096, 0.0, 30.0), (65, 4101, 1e-4, 1.0)]
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(REPOSITORY))},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    worst = json.loads(answer.stdout.splitlines()[-1])
    assert worst["kept"]
    assert worst["loss"] < 1e-5
    assert worst["gradient"] < 5e-3  # the interpreter truncates to bf16
