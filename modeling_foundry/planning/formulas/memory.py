"""Peak memory of one rank in training, term by term.

Each term is a formula over the architecture and one constant of :class:`Calibration`; each constant can be
corrected by one measurement.  Activations, eager and of compiled layers, equal what autograd saves (tests count the
bytes); those of a whole compiled model and the loss were fitted to measured H200 peaks (docs/plan.md says which).
FSDP2 was measured on one GPU; ZeRO-2, ZeRO-3, MoE and MLA are forecasts from the frameworks' sources and have not been
measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..models.architecture import Architecture, Block
from .activations import Bytes, layer_bytes_per_token, norm_bytes_per_token, widest_feed_forward
from .flops import block_products
from .parameters import block_parameters, count_parameters

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]
Precision = Literal["fp32", "bf16_mixed", "bf16", "fp8"]
Execution = Literal["eager", "compiled_layers", "compiled"]
Loss = Literal["chunked", "full"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Calibration:
    """The constants that measurements correct.

    Args:
        logit_bytes_full: bytes a logit of plain cross-entropy costs at the start of the backward pass: fp32
            log-softmax, its gradient, and the gradient of the logits (3 x 4).
        logit_bytes_full_compiled: the same inside one compiled graph: a bf16 and an fp32 copy.
        logit_bytes_chunked: the same for a logit of one chunk of our own loss on CUDA: bf16 logits, which the
            kernel overwrites with their gradient.
        logit_bytes_chunked_fp8: the same with an fp8 head: bf16 logits, and their gradient by rows and by columns.
        logit_bytes_chunked_fp32: the same in fp32 without the kernel: the logits and logsumexp's temporary.
        whole_model_vectors: vectors of the hidden size that whole-model compilation keeps beyond what
            per-layer compilation keeps, per layer.
        reduce_bucket_values, num_reduce_buckets: DeepSpeed's gradient buckets (its default size, doubled).
        max_live_values: parameters ZeRO-3 keeps gathered (its ``stage3_max_live_parameters``), or one layer.
        outside_allocator_bytes: CUDA context, cuBLAS and cuDNN workspaces, which no allocator counts.
        collectives_bytes: NCCL's buffers with more than one rank.
    """

    logit_bytes_full: float = 12
    logit_bytes_full_compiled: float = 6
    logit_bytes_chunked: float = 2
    logit_bytes_chunked_fp8: float = 4
    logit_bytes_chunked_fp32: float = 8
    whole_model_vectors: float = 1
    reduce_bucket_values: int = 500_000_000
    num_reduce_buckets: int = 2
    max_live_values: int = 1_000_000_000
    outside_allocator_bytes: int = 900 * 2**20
    collectives_bytes: int = 700 * 2**20


DEFAULT_CALIBRATION = Calibration()


@dataclass(frozen=True)
class TrainingSetup:
    """How one rank trains.

    Args:
        micro_batch: sequences of one forward pass on one rank.
        accumulation: forward passes of one optimizer step; above one, gradients outlive the forward pass.
        precision: bf16_mixed keeps fp32 masters (autocast without DeepSpeed, DeepSpeed's own with it); bf16
            keeps none, its optimizer state included; fp8 is bf16 with fp8 matrix products in the layers.
        bf16_residual: whether the residual stream is bf16 under autocast; transformers' models keep fp32.
    """

    micro_batch: int
    sequence_length: int
    accumulation: int = 1
    num_ranks: int = 1
    sharding: Sharding = "none"
    precision: Precision = "bf16_mixed"
    execution: Execution = "compiled_layers"
    loss: Loss = "chunked"
    loss_chunk_tokens: int = 8192
    checkpointing: bool = False
    optimizer: OptimizerName = "adamw"
    bf16_residual: bool = False
    calibration: Calibration = DEFAULT_CALIBRATION

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass on one rank."""
        return self.micro_batch * self.sequence_length

    @property
    def is_deepspeed(self) -> bool:
        return self.sharding in ("zero1", "zero2", "zero3")

    @property
    def is_autocast(self) -> bool:
        """fp32 parameters whose products run in bf16 (DeepSpeed and FSDP2 hold bf16 copies instead)."""
        return self.precision == "bf16_mixed" and self.sharding in ("none", "ddp")


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one rank.

    Args:
        persistent: name -> bytes that are there through the whole step.
        moments: moment of a step -> name -> bytes that are there besides, then.
        outside: bytes on the device that the framework's allocator does not count.
    """

    persistent: dict[str, int]
    moments: dict[str, dict[str, int]]
    outside: int

    @property
    def fullest_moment(self) -> str:
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` would say."""
        return sum(self.persistent.values()) + sum(self.moments[self.fullest_moment].values())

    @property
    def device_bytes(self) -> int:
        """What the device needs: the peak and what lies outside the allocator."""
        return self.peak + self.outside

    @property
    def terms(self) -> dict[str, int]:
        """Every term of the peak, those of its fullest moment included."""
        return self.persistent | self.moments[self.fullest_moment]


def forecast_memory(architecture: Architecture, setup: TrainingSetup) -> MemoryForecast:
    """The terms of one rank's peak, in whole bytes."""
    persistent, moments = memory_terms(architecture, setup)
    constants = setup.calibration
    outside = constants.outside_allocator_bytes + constants.collectives_bytes * (setup.num_ranks > 1)
    return MemoryForecast(
        _whole(persistent), {name: _whole(terms) for name, terms in moments.items()}, outside
    )


def memory_terms(
    architecture: Architecture, setup: TrainingSetup
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What is there through the whole step, and what besides at each moment; sizes may be numpy arrays."""
    total = count_parameters(architecture).total
    gradients = _gradients(total, setup)
    copies = _autocast_copies(architecture, setup)
    persistent: dict[str, float] = {
        "parameters": _parameters(total, setup),
        "optimizer state": _optimizer_state(architecture, total, setup),
        "gathered parameters": _gathered(architecture, setup),
        **_gradient_copies(total, setup),
    }
    buckets = _reduction_buckets(setup)
    accumulated = _accumulated_gradients(total, setup) | (buckets if setup.accumulation > 1 else {})
    saved = _saved_activations(architecture, setup)
    one_layer = _one_layer(architecture, setup)
    moments: dict[str, dict[str, float]] = {
        "loss": {**accumulated, **copies, **saved, "loss": _loss(architecture, setup)},
        "backward": {
            **accumulated, **buckets, **copies, **saved,
            "head gradient": _head_gradient(architecture, setup),
            "one layer's backward": _backward_workspace(architecture, setup)
            + (one_layer if setup.checkpointing else 0),
        },
        "end of backward": {
            **gradients, **buckets, **copies,
            "one layer's backward": one_layer + _backward_workspace(architecture, setup),
        },
        "optimizer step": {**gradients, "optimizer workspace": _step_workspace(total, setup)},
    }  # fmt: skip
    return persistent, moments


def _whole(terms: dict[str, float]) -> dict[str, int]:
    return {name: round(value) for name, value in terms.items()}


# ------------------------------------------------------------------------------------------- model state


def _shards(setup: TrainingSetup, stages: tuple[str, ...]) -> int:
    return setup.num_ranks if setup.sharding in stages else 1


def _parameter_bytes(setup: TrainingSetup) -> int:
    """Bytes of a parameter as the framework stores it."""
    if setup.precision == "fp32":
        return 4
    return 4 if setup.precision == "bf16_mixed" and not setup.is_deepspeed else 2


def _parameters(total: int, setup: TrainingSetup) -> int:
    return -(-total * _parameter_bytes(setup) // _shards(setup, ("zero3", "fsdp2")))


def _gradients(total: int, setup: TrainingSetup) -> dict[str, float]:
    """After the last backward pass of a step."""
    return {"gradients": total * _parameter_bytes(setup) // _shards(setup, ("zero2", "zero3", "fsdp2"))}


def _accumulated_gradients(total: int, setup: TrainingSetup) -> dict[str, float]:
    """Left by the earlier backward passes of a step; FSDP2 does not synchronise these: whole, and in bf16."""
    if setup.accumulation == 1:
        return {}
    if setup.sharding == "fsdp2":
        return {"gradients": total * (4 if setup.precision == "fp32" else 2)}
    return _gradients(total, setup)


def _optimizer_state(architecture: Architecture, total: int, setup: TrainingSetup) -> int:
    """Two moments a parameter (AdamW), one for Muon's matrices; DeepSpeed adds the fp32 masters."""
    shards = _shards(setup, ("zero1", "zero2", "zero3", "fsdp2"))
    moment = 4 if setup.is_deepspeed else _parameter_bytes(setup)
    values = 2 * total
    if setup.optimizer == "muon":
        values -= sum(count * sum(_matrices(block, architecture)) for count, block in architecture.blocks())
    masters = 4 * total if setup.is_deepspeed and setup.precision != "fp32" else 0
    return -(-(values * moment + masters) // shards)


def _matrices(block: Block, architecture: Architecture) -> list[int]:
    products = block_products(block, architecture.hidden_size)
    return list(products.values())


def _autocast_copies(architecture: Architecture, setup: TrainingSetup) -> dict[str, float]:
    """Copies of the layers' weights that autocast (bf16) or fp8 products make and the backward pass reads."""
    weights = sum(count * sum(_matrices(block, architecture)) for count, block in architecture.blocks())
    copies: dict[str, float] = {}
    if setup.is_autocast:
        copies["bf16 copies of weights"] = 2 * weights
    if (
        setup.precision == "fp8" and setup.execution != "compiled_layers"
    ):  # rounded again in the backward pass
        copies["fp8 copies of weights"] = weights
    return copies


def _gathered(architecture: Architecture, setup: TrainingSetup) -> int:
    """Whole parameters that a sharded rank holds for a while."""
    if setup.sharding == "zero3":
        largest_layer = sum(block_parameters(architecture.last_block, architecture).values())
        live = max(setup.calibration.max_live_values, largest_layer)
        return 2 * min(count_parameters(architecture).total, live)
    if setup.sharding == "fsdp2":
        layer = sum(block_parameters(architecture.last_block, architecture).values())
        rows = (1 if architecture.tied else 2) * architecture.vocab_size * architecture.hidden_size
        return 2 * (2 * layer + rows)  # this layer and the next; embedding and head stay through the step
    return 0


def _gradient_copies(total: int, setup: TrainingSetup) -> dict[str, float]:
    """DDP's buckets hold a second copy of the gradients, for as long as the run lasts."""
    if setup.sharding != "ddp" or setup.num_ranks == 1:
        return {}
    return {"communication buffers": total * _parameter_bytes(setup)}


def _reduction_buckets(setup: TrainingSetup) -> dict[str, float]:
    """DeepSpeed allocates its buckets in the first backward pass of a step and frees them when the last is reduced."""
    if not setup.is_deepspeed:
        return {}
    constants = setup.calibration
    return {"communication buffers": constants.num_reduce_buckets * constants.reduce_bucket_values * 2}


def _step_workspace(total: int, setup: TrainingSetup) -> int:
    """DeepSpeed makes an fp32 copy of its part of the gradients, from a flattened bf16 one."""
    return 6 * total // setup.num_ranks if setup.is_deepspeed else 0


# ------------------------------------------------------------------------------------------- activations


def _sizes(setup: TrainingSetup) -> Bytes:
    """Bytes of a value in the residual stream and of one that goes into a matrix product."""
    compute = 4 if setup.precision == "fp32" else 2
    residual = 4 if setup.precision == "fp32" or (setup.is_autocast and not setup.bf16_residual) else 2
    return Bytes(
        residual, compute, compiled=setup.execution != "eager", fp8=setup.precision == "fp8",
        by_layer=setup.execution == "compiled_layers",
    )  # fmt: skip


def _saved_activations(architecture: Architecture, setup: TrainingSetup) -> dict[str, float]:
    sizes, hidden = _sizes(setup), architecture.hidden_size
    per_token = norm_bytes_per_token(hidden, architecture.normalization, sizes, consumers=1)
    layers: float
    if setup.checkpointing:
        layers = architecture.num_layers * hidden * sizes.residual
    else:
        layers = sum(count * _layer(block, architecture, setup) for count, block in architecture.blocks())
    return {
        "activations of the layers": layers * setup.tokens,
        "last norm": per_token * setup.tokens,
    }


def _layer(block: Block, architecture: Architecture, setup: TrainingSetup) -> float:
    sizes = _sizes(setup)
    kept = layer_bytes_per_token(block, architecture, sizes)
    if setup.execution == "compiled":
        kept += setup.calibration.whole_model_vectors * sizes.compute * architecture.hidden_size
    return kept


def _one_layer(architecture: Architecture, setup: TrainingSetup) -> float:
    """Activations of the largest layer: what recomputation brings back, and what is left last."""
    return max(_layer(block, architecture, setup) for _, block in architecture.blocks()) * setup.tokens


def _backward_workspace(architecture: Architecture, setup: TrainingSetup) -> int:
    """Gradients inside one layer: of the feed-forward's inner vectors, and of the residual stream twice."""
    sizes = _sizes(setup)
    inner = max(widest_feed_forward(block) for _, block in architecture.blocks())
    return setup.tokens * (3 * sizes.compute * inner + 2 * sizes.residual * architecture.hidden_size)


# -------------------------------------------------------------------------------------------------- loss


def _loss(architecture: Architecture, setup: TrainingSetup) -> float:
    """Logits, their softmax and gradients at the fullest moment of the cross-entropy."""
    constants, vocabulary = setup.calibration, architecture.vocab_size
    if setup.loss == "full":
        compiled = setup.execution == "compiled"
        per_logit = constants.logit_bytes_full_compiled if compiled else constants.logit_bytes_full
        copy = 2 * vocabulary * architecture.hidden_size if setup.is_autocast else 0
        return per_logit * setup.tokens * vocabulary + copy
    rows = min(setup.loss_chunk_tokens, setup.tokens)
    by_precision = {"fp32": constants.logit_bytes_chunked_fp32, "fp8": constants.logit_bytes_chunked_fp8}
    per_logit = by_precision.get(setup.precision, constants.logit_bytes_chunked)
    return per_logit * rows * vocabulary + _head_gradient(architecture, setup)


def _head_gradient(architecture: Architecture, setup: TrainingSetup) -> float:
    """Chunked cross-entropy holds the head's gradient in fp32, that of the hidden states, and a bf16 head."""
    weights = architecture.vocab_size * architecture.hidden_size
    if setup.loss == "full":
        return weights * _parameter_bytes(setup)
    copy = 2 * weights if setup.is_autocast else 0
    return 4 * weights + copy + setup.tokens * architecture.hidden_size * _sizes(setup).residual
