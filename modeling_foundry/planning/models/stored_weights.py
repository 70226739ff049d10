"""In how many bits a checkpoint says that its weights are stored, from ``quantization_config``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fields import PlanError, printable

# Methods whose name says the bits.
BITS_BY_METHOD = {
    "fp8": 8, "fbgemm_fp8": 8, "finegrained_fp8": 8, "mxfp4": 4, "nvfp4": 4, "awq": 4, "gptq": 4, "bitnet": 2,
}  # fmt: skip
# The planner's name of the nearest size.
DTYPE_OF_BITS = {8: "fp8", 4: "int4"}


def quantization_note(values: Mapping[str, Any], source: str, dtype: str) -> str | None:
    """One line where a file says that its weights are stored in other bits than ``dtype`` counts.

    Args:
        values: a parsed ``config.json``.
        dtype: of the weights, as the planner counts them.

    Raises:
        PlanError: ``quantization_config`` is no object.
    """
    config = values.get("quantization_config")
    if config is None:
        return None
    if not isinstance(config, Mapping):
        raise PlanError(f"{source}: quantization_config: expected an object, found {type(config).__name__}")
    method, bits = str(config.get("quant_method") or "a method it does not name"), _bits(config)
    stored = DTYPE_OF_BITS.get(bits or 0)
    if stored == dtype:
        return None
    size = f" in {bits} bits" if bits else ""
    remedy = f"; --dtype {stored} counts them so" if stored else ""
    return printable(
        f"the file says that its weights are stored{size} ({method[:40]}, quantization_config), counted here in {dtype}"
        f"{remedy}"
    )


def _bits(config: Mapping[str, Any]) -> int | None:
    """Bits of a weight: as given, as the method's name says, or None."""
    groups = config.get("config_groups")  # of compressed-tensors
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping) and type(weights.get("num_bits")) is int:
            return int(weights["num_bits"])
    for key in ("bits", "w_bit", "num_bits", "weight_bits"):
        if type(config.get(key)) is int:
            return int(config[key])
    for key, bits in (("load_in_4bit", 4), ("_load_in_4bit", 4), ("load_in_8bit", 8), ("_load_in_8bit", 8)):
        if config.get(key) is True:
            return bits
    names = (str(config.get(key) or "").lower() for key in ("quant_method", "quant_algo"))
    return next((BITS_BY_METHOD[name] for name in names if name in BITS_BY_METHOD), None)
