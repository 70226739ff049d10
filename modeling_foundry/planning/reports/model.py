"""From a model to its parameters, FLOPs, memory, time and money: the report behind ``plan.py model``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..formulas.cost import training_cost, training_rate
from ..formulas.flops import TRAINING_OVER_FORWARD, count_flops
from ..formulas.memory import Sharding, TrainingSetup, forecast_memory
from ..formulas.parameters import count_parameters
from ..models.architecture import Architecture, describe
from ..models.fields import PlanError
from ..models.model_files import ModelFile, read_model
from ..models.recipe import Recipe
from ..options import GpuOptions, ModelCommand, SetupOptions, quantity

DEFAULT_SEQUENCE = 2048
DEFAULT_GPUS = 8
SHARE_LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Run:
    """A model, how a rank trains it, on how many GPUs, for how many tokens."""

    file: ModelFile
    setup: TrainingSetup
    tokens: float | None

    @property
    def architecture(self) -> Architecture:
        return self.file.architecture

    @property
    def tokens_per_step(self) -> int:
        return self.setup.tokens * self.setup.accumulation * self.setup.num_ranks


def model_report(command: ModelCommand) -> dict[str, Any]:
    """Everything ``plan.py model`` says, ready for JSON."""
    file = read_model(command.model)
    sequence = resolve_sequence(command.sequence_length, file)
    ranks = resolve_ranks(command, file.recipe)
    setup = resolve_setup(command, file.recipe, sequence, ranks)
    check_precision(command, setup)
    given = quantity("tokens", command.tokens, 1, 1e18)
    run = Run(file, setup, given if given is not None else _recipe_tokens(file.recipe, setup))
    return {
        "model": {
            "source": file.source,
            "family": file.architecture.family,
            "description": describe(file.architecture),
        },
        "parameters": parameter_report(file.architecture),
        "flops": flop_report(run),
        "memory": memory_report(file, setup, command),
        "training": training_report(run, command),
    }


# ------------------------------------------------------------------------------ what was left to defaults


def resolve_sequence(given: int | None, file: ModelFile) -> int:
    """Tokens of one sequence: as given, the recipe's, or 2,048 as far as the model's positions reach.

    Raises:
        PlanError: longer than a table of learned positions.
    """
    longest = file.architecture.max_positions or DEFAULT_SEQUENCE
    sequence = given or (file.recipe.sequence_length if file.recipe else min(DEFAULT_SEQUENCE, longest))
    table = file.architecture.learned_positions
    if table and sequence > table:
        raise PlanError(f"sequence_length: {sequence:,} is beyond the model's {table:,} learned positions")
    return sequence


def resolve_ranks(hardware: GpuOptions, recipe: Recipe | None) -> int:
    """GPUs: as given, what the recipe insists on, one for a CPU recipe, else 8."""
    if hardware.num_gpus is not None:
        return hardware.num_gpus
    if recipe is None:
        return DEFAULT_GPUS
    return recipe.num_processes or (1 if recipe.use_cpu else DEFAULT_GPUS)


def resolve_setup(options: SetupOptions, recipe: Recipe | None, sequence: int, ranks: int) -> TrainingSetup:
    """How one rank trains: each option, else what the recipe says, else the project's defaults.

    Raises:
        PlanError: a sharding that the number of GPUs or the optimizer does not allow.
    """
    sharding = resolve_sharding(options.sharding, recipe, ranks)
    if recipe is None:
        return TrainingSetup(
            micro_batch=options.micro_batch or 1,
            sequence_length=sequence,
            accumulation=options.accumulation or 1,
            num_ranks=ranks,
            sharding=sharding,
            precision=options.precision or "bf16_mixed",
            execution=options.execution or "compiled_layers",
            loss=options.loss,
            checkpointing=bool(options.checkpointing),
        )
    checkpointing = (
        recipe.activation_checkpointing if options.checkpointing is None else options.checkpointing
    )
    micro_batch = options.micro_batch or recipe.micro_batch
    return TrainingSetup(
        micro_batch=micro_batch,
        sequence_length=sequence,
        accumulation=options.accumulation or recipe.accumulation_of(micro_batch, ranks, sequence),
        num_ranks=ranks,
        sharding=sharding,
        precision=options.precision or _recipe_precision(recipe),
        execution=options.execution or ("compiled_layers" if recipe.compile_layers else "eager"),
        loss=options.loss,
        loss_chunk_tokens=recipe.loss_chunk_tokens,
        checkpointing=checkpointing,
        optimizer="muon" if recipe.optimizer == "muon" else "adamw",
    )


def resolve_sharding(given: Sharding | None, recipe: Recipe | None, ranks: int) -> Sharding:
    """As given, else none on one GPU and ZeRO-1 on several, or DDP for Muon."""
    needs_whole_matrices = recipe is not None and recipe.optimizer == "muon"
    if given == "none" and ranks > 1:
        raise PlanError(f"sharding: none is for one GPU; {ranks:,} need ddp, zero1, zero2, zero3 or fsdp2")
    if given is not None and given.startswith("zero") and needs_whole_matrices:
        raise PlanError(f"sharding: muon needs whole matrices and {given} shards them; give ddp")
    if given is not None or ranks == 1:
        return given or "none"
    return "ddp" if needs_whole_matrices else "zero1"


def check_precision(hardware: GpuOptions, setup: TrainingSetup) -> None:
    """Raises: PlanError, fp8 on a GPU that has none."""
    gpu = hardware.known_gpu()
    if setup.precision == "fp8" and gpu is not None and gpu.fp8_tflops is None:
        raise PlanError(f"precision: {gpu.name} has no fp8; expected bf16_mixed, bf16 or fp32")


def _recipe_precision(recipe: Recipe) -> Any:
    if not recipe.bf16:
        return "fp32"
    return "bf16" if recipe.parameter_dtype == "bfloat16" else "bf16_mixed"


def _recipe_tokens(recipe: Recipe | None, setup: TrainingSetup) -> float | None:
    if recipe is None:
        return None
    step_tokens = setup.tokens * setup.accumulation * setup.num_ranks
    steps = recipe.max_steps if recipe.max_tokens is None else -(-recipe.max_tokens // step_tokens)
    return steps * step_tokens


# ----------------------------------------------------------------------------------------------- reports


def parameter_report(architecture: Architecture) -> dict[str, Any]:
    """Counts by component, total and active."""
    count = count_parameters(architecture)
    return {
        "components": count.components,
        "total": count.total,
        "active": count.active,
        "active_without_embedding": count.active - count.embedding * (not architecture.tied),
        "without_embedding_and_head": count.total - count.embedding - count.components.get("output head", 0),
        "selection_biases": count.selection_biases,
        "prediction_layers": count.prediction_layers,
    }


def flop_report(run: Run) -> dict[str, Any]:
    """FLOPs by component in both conventions, and attention's share against the sequence length."""
    sequence = run.setup.sequence_length
    counts = {name: count_flops(run.architecture, sequence, name) for name in ("full", "causal")}
    return {
        "sequence_length": sequence,
        "forward_per_token": {
            name: {part: flops / sequence for part, flops in count.components.items()}
            for name, count in counts.items()
        },
        "training_per_token": {name: count.training_per_token for name, count in counts.items()},
        "training_over_forward": TRAINING_OVER_FORWARD,
        "tokens_per_step": run.tokens_per_step,
        "training_per_step": {
            n: count.training_per_token * run.tokens_per_step for n, count in counts.items()
        },
        "attention_share": attention_shares(run.architecture, sequence),
    }


def attention_shares(architecture: Architecture, sequence: int) -> list[dict[str, Any]]:
    """Share of attention scores in all FLOPs at powers of two, and at the sequence asked for."""
    longest = architecture.learned_positions or SHARE_LENGTHS[-1]
    lengths = sorted({length for length in SHARE_LENGTHS if length <= longest} | {sequence})
    rows = []
    for length in lengths:
        full, causal = (count_flops(architecture, length, name) for name in ("full", "causal"))
        rows.append(
            {
                "sequence_length": length,
                "full": full.attention_share,
                "causal": causal.attention_share,
                "training_per_token_full": full.training_per_token,
                "training_per_token_causal": causal.training_per_token,
            }
        )
    return rows


def memory_report(file: ModelFile, setup: TrainingSetup, hardware: GpuOptions) -> dict[str, Any]:
    """The terms of one rank's peak, and whether it fits the GPU."""
    forecast = forecast_memory(file.architecture, setup)
    on_cpu = file.recipe is not None and file.recipe.use_cpu
    available = None if on_cpu else hardware.memory_bytes()
    settings = asdict(setup)
    settings.pop("calibration")
    return {
        "setup": settings,
        "terms_bytes": forecast.terms,
        "fullest_moment": forecast.fullest_moment,
        "moments_bytes": {
            name: sum(forecast.persistent.values()) + sum(terms.values())
            for name, terms in forecast.moments.items()
        },
        "peak_bytes": forecast.peak,
        "outside_allocator_bytes": 0 if on_cpu else forecast.outside,
        "gpu_bytes": available,
        "fits": None if available is None else forecast.device_bytes <= available,
    }


def training_report(run: Run, command: ModelCommand) -> dict[str, Any]:
    """Rate, hours, money and energy, or the reason why they cannot be told."""
    gpu, ranks = command.known_gpu(), run.setup.num_ranks
    flops = count_flops(run.architecture, run.setup.sequence_length).training_per_token
    on_cpu = run.file.recipe is not None and run.file.recipe.use_cpu and command.gpu_peak is None
    report: dict[str, Any] = {
        "hardware": "CPU" if on_cpu else command.gpu_name(),
        "num_gpus": ranks,
        "tokens": run.tokens,
        "tokens_per_step": run.tokens_per_step,
        "training_flops": None if run.tokens is None else run.tokens * flops,
    }
    rate, mfu = _rate_and_mfu(command, run.setup, flops, on_cpu)
    if rate is None:
        return report | {"unknown": _why_unknown(run.setup, on_cpu)}
    tokens = run.tokens if run.tokens is not None else 1e9
    cost = training_cost(
        tokens=tokens,
        tokens_per_second=rate,
        num_gpus=ranks,
        uptime=command.uptime,
        power_w=None if on_cpu or gpu is None else gpu.power_w,
        power_overhead=command.power_overhead,
        usd_per_gpu_hour=command.usd_per_gpu_hour,
    )
    return report | {
        "mfu": mfu,
        "mfu_source": _mfu_source(command, run.architecture),
        "tokens_per_second": rate,
        "tokens_per_second_per_gpu": rate / ranks,
        "step_seconds": run.tokens_per_step / rate,
        "costed_tokens": tokens,
        "hours": cost.hours,
        "gpu_hours": cost.gpu_hours,
        "energy_kwh": cost.energy_kwh,
        "usd": cost.usd,
    }


def _why_unknown(setup: TrainingSetup, on_cpu: bool) -> str:
    if on_cpu:
        return "a CPU has no peak in the table: give --tokens_per_second"
    if not setup.precision.startswith("bf16"):
        return f"typical MFUs are of bf16 training, not {setup.precision}: give --mfu over the bf16 peak"
    return "no MFU is known for this GPU: give --mfu"


def _rate_and_mfu(
    command: ModelCommand, setup: TrainingSetup, flops_per_token: float, on_cpu: bool
) -> tuple[float | None, float | None]:
    """Tokens a second of all ranks and MFU: each from the other, where there is a peak.

    Raises:
        PlanError: a rate above the peak, which fp8 doubles.
    """
    rate, ranks = command.tokens_per_second, setup.num_ranks
    if on_cpu:
        return rate, None
    if rate is not None:
        mfu = rate * flops_per_token / (ranks * command.peak_flops())
        largest = 2 if setup.precision == "fp8" else 1
        if mfu > largest:
            most = rate * largest / mfu
            raise PlanError(f"tokens_per_second: {rate:g} is more than the peak allows, {most:,.0f}")
        return rate, mfu
    typical = command.utilisation() if setup.precision.startswith("bf16") else command.mfu
    if typical is None:
        return None, None
    return training_rate(ranks, command.peak_flops(), typical, flops_per_token), typical


def _mfu_source(command: ModelCommand, architecture: Architecture) -> str:
    gpu = command.known_gpu()
    if command.tokens_per_second is not None:
        return "from the rate given"
    if command.mfu is not None or gpu is None:
        return "as given"
    dense = "; experts reach less: give --mfu" if architecture.has_experts else ""
    return gpu.mfu_source + dense
