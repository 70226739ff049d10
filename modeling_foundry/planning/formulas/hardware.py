"""GPUs as data: dense peaks, memory, links, and what a training run really reaches on them.

A peak with 2:4 sparsity is twice the dense one and no training run sees it; it stands in its own column so
that nobody divides by it.  All rates are the vendors' own; the page or table is named beside each.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ..models.fields import PlanError

GIB = 2**30
TERA = 1e12


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    Args:
        bf16_tflops: dense bf16 peak with fp32 accumulation, TFLOP/s.
        fp8_tflops: dense fp8 peak with fp32 accumulation; None where the chip has no fp8.
        memory_gb: what the vendor prints (10**9 bytes).
        memory_mib: what the driver reports as usable (2**20 bytes).
        bandwidth_gb_s: device memory.
        link: what joins it to its neighbours; link_gb_s is both directions together.
        power_w: board power limit.
        typical_mfu: model FLOPs of training over the dense bf16 peak, full-attention convention; None: no
            figure we could check.
    """

    name: str
    bf16_tflops: float
    bf16_sparse_tflops: float
    fp8_tflops: float | None
    fp8_sparse_tflops: float | None
    memory_gb: float
    memory_mib: int
    bandwidth_gb_s: float
    link: str
    link_gb_s: float
    power_w: int
    typical_mfu: float | None
    mfu_source: str
    source: str

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 2**20

    @property
    def bf16_flops(self) -> float:
        """Dense bf16 FLOPs a second."""
        return self.bf16_tflops * TERA


GPUS = (
    Gpu(
        "B200", 2250, 4500, 4500, 9000, 180, 183_359, 8000, "NVLink 5", 1800, 1000, 0.36,
        "1.83B on 8 GPUs: 633k tokens/s, 36.3% (the earlier system's training plot)",
        "NVIDIA DGX B200 datasheet: 72 PFLOPS sparse fp8 over 8 GPUs, 1,440 GB, 64 TB/s",
    ),
    Gpu(
        "H200", 989, 1979, 1979, 3958, 141, 143_771, 4800, "NVLink 4", 900, 700, 0.61,
        "the 1.83B recipe on one H200, ZeRO-1: benchmarks/receipts/pretrain_speed.json",
        "NVIDIA H200 datasheet: 1,979 (bf16) and 3,958 (fp8) TFLOPS with sparsity",
    ),
    Gpu(
        "H100", 989, 1979, 1979, 3958, 80, 81_559, 3350, "NVLink 4", 900, 700, 0.45,
        "open 1B to 3B runs: 40% to 50% (MosaicML LLM Foundry, llm.c, picotron)",
        "NVIDIA H100 datasheet, SXM column: 1,979 (bf16) and 3,958 (fp8) TFLOPS with sparsity",
    ),
    Gpu(
        "H100-PCIe", 756, 1513, 1513, 3026, 80, 81_559, 2000, "PCIe 5 (NVLink bridge 600)", 128, 350, None,
        "", "NVIDIA H100 datasheet (2022), PCIe column: 1,513 (bf16) and 3,026 (fp8) TFLOPS with sparsity",
    ),
    Gpu(
        "A100-80", 312, 624, None, None, 80, 81_920, 2039, "NVLink 3", 600, 400, 0.55,
        "1.1B to 1.3B runs on the 40 GB card: 56% (TinyLlama, MosaicML)",
        "NVIDIA A100 datasheet, 80GB SXM column: 312 TFLOPS bf16, 624 with sparsity",
    ),
    Gpu(
        "A100-40", 312, 624, None, None, 40, 40_960, 1555, "NVLink 3", 600, 400, 0.55,
        "TinyLlama 1.1B 56%, MosaicML MPT-1B 56.2%",
        "NVIDIA A100 Tensor Core GPU architecture whitepaper: 312 TFLOPS bf16, 624 with sparsity, 1,555 GB/s",
    ),
    Gpu(
        "L40S", 362.05, 733, 733, 1466, 48, 46_068, 864, "PCIe 4", 64, 350, None,
        "", "NVIDIA L40S datasheet: bf16 362.05 | 733 and fp8 733 | 1,466 TFLOPS, dense | sparse",
    ),
    Gpu(
        "RTX4090", 165.2, 330.4, 330.3, 660.6, 24, 24_564, 1008, "PCIe 4", 64, 450, None,
        "", "NVIDIA Ada GPU architecture whitepaper, appendix A: bf16 and fp8 with fp32 accumulation",
    ),
    Gpu(
        "MI300X", 1307.4, 2614.9, 2614.9, 5229.8, 192, 196_592, 5300, "Infinity Fabric", 896, 750, None,
        "", "AMD Instinct MI300X datasheet: bf16 1,307.4 and fp8 2,614.9 TFLOPs dense",
    ),
)  # fmt: skip

# How drivers name the boards (torch.cuda.get_device_name), for code that runs on one.
_DEVICE_NAMES = {
    "NVIDIA B200": "B200",
    "NVIDIA H200": "H200",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H100 PCIe": "H100-PCIe",
    "NVIDIA A100-SXM4-80GB": "A100-80",
    "NVIDIA A100-SXM4-40GB": "A100-40",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX4090",
    "AMD Instinct MI300X": "MI300X",
    "AMD Instinct MI300X OAM": "MI300X",
}
_BY_KEY = {re.sub(r"[^a-z0-9]", "", gpu.name.lower()): gpu for gpu in GPUS}
_BY_KEY |= {"h100sxm": _BY_KEY["h100"], "h100sxm5": _BY_KEY["h100"], "h200sxm": _BY_KEY["h200"]}
_BY_KEY |= {"4090": _BY_KEY["rtx4090"], "a10080gb": _BY_KEY["a10080"], "a10040gb": _BY_KEY["a10040"]}


def find_gpu(name: str) -> Gpu:
    """A GPU by name: case, spaces and dashes do not matter.

    Raises:
        PlanError: not in the table; the message lists it.
    """
    key = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("geforce")
    if key in _BY_KEY:
        return _BY_KEY[key]
    names = [gpu.name for gpu in GPUS]
    close = [gpu.name for k, gpu in _BY_KEY.items() if k in difflib.get_close_matches(key, _BY_KEY, n=3)]
    if key == "a100":
        close = ["A100-40", "A100-80"]
    hint = f"; did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"; known: {', '.join(names)}"
    raise PlanError(
        f"gpu: {name[:40]!r} is not in the table{hint} (or give --gpu_peak in TFLOP/s, dense bf16)"
    )


def gpu_of_device(device_name: str) -> Gpu | None:
    """The table's entry for a driver's device name; None for any other, which then gets no percentage."""
    name = _DEVICE_NAMES.get(device_name.strip())
    return find_gpu(name) if name else None
