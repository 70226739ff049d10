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
from modeling_foundry import losses, softmax_kernels as kernels

worst = {"loss": 0.0, "gradient": 0.0, "kept": True, "float8_loss": 0.0, "float8": 0.0, "same": True}
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
    float8_losses, _, rows, columns = kernels.float8_softmax_gradient(logits, targets, counts, z)
    worst["float8_loss"] = max(worst["float8_loss"], relative(float8_losses, expected))
    restored = rows.float() / kernels.FLOAT8_GRADIENT_SCALE / 7.0
    worst["float8"] = max(worst["float8"], relative(restored, gradient))
    worst["same"] &= torch.equal(columns.float().T, rows.float())
print(json.dumps(worst))
"""


def test_the_kernels_equal_the_pytorch_path():
    """Sizes around the blocks of 4,096 columns and the tiles of 64 tokens by 128 columns; large logits too."""
    cases = [(3, 50, 0.0, 2.0), (70, 130, 1e-2, 2.0), (2, 4096, 0.0, 30.0), (65, 4101, 1e-4, 1.0)]
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(REPOSITORY))},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    worst = json.loads(answer.stdout.splitlines()[-1])
    assert worst["kept"]
    assert worst["same"]
    assert max(worst["loss"], worst["float8_loss"]) < 1e-5
    assert worst["gradient"] < 5e-3  # the interpreter truncates to bf16
    assert worst["float8"] < 0.1  # two bits of mantissa; the label's own entry is exact


FLOAT8_SCRIPT = """
import json
import torch
from modeling_foundry.losses import linear_cross_entropy
from modeling_foundry.training.float8 import float8_linear_cross_entropy

generator = torch.Generator().manual_seed(0)
hidden = torch.randn(64, 64, generator=generator).bfloat16().requires_grad_()
weight = (torch.randn(160, 64, generator=generator) * 0.3).bfloat16().requires_grad_()
labels = torch.randint(0, 160, (64,), generator=generator)
labels[5] = -100
rows = []
for options in ({}, {"z_loss_weight": 1e-2}, {"num_items_in_batch": 200}):
    plain = linear_cross_entropy(hidden, weight, labels, **options)
    plain_gradients = torch.autograd.grad(plain * 3, (hidden, weight))
    for chunk_tokens in (17, 48, 8192):
        loss = float8_linear_cross_entropy(hidden, weight, labels, chunk_tokens=chunk_tokens, **options)
        gradients = torch.autograd.grad(loss * 3, (hidden, weight))
        errors = [
            ((ours - theirs).float().norm() / theirs.float().norm()).item()
            for ours, theirs in zip(gradients, plain_gradients)
        ]
        rows.append((loss.item() / plain.item(), *errors, gradients[0][5].abs().max().item()))
print(json.dumps(rows))
"""


def test_the_fp8_loss_is_the_plain_loss_to_fp8_precision():
    """e4m3 rounds by up to 6 %, e5m2 by up to 13 %; sums over them by far less."""
    answer = subprocess.run(
        [sys.executable, "-c", FLOAT8_SCRIPT], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(REPOSITORY))},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    for ratio, hidden_error, weight_error, ignored in json.loads(answer.stdout.splitlines()[-1]):
        assert abs(ratio - 1) < 5e-3
        assert max(hidden_error, weight_error) < 0.08
        assert ignored == 0
