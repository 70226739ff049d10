"""Checks and times every attention backend on a four-layer model of the flagship's width, and the loss.

    python benchmarks/attention_backends.py         # on a CUDA machine; --receipt=true for the receipt
    python benchmarks/attention_backends.py --smoke=true --backends=[eager,sdpa,linear_cross_entropy]

The second is a trial of the script with tiny sizes; those three run on any machine.

Each backend runs in a process of its own with a time limit, so that one that hangs or crashes costs only itself.
Errors are relative to eager attention in fp32: ||x - reference|| / ||reference|| over tokens that are not
padding; eager in bf16 shows what the precision alone costs.  The last lines are the table; raw samples go to
runs/benchmarks/attention_backends.json.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from benchmarks import results  # noqa: E402
from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.settings import FoundryError, parse, run  # noqa: E402

BACKENDS = ("eager", "sdpa", "cudnn_sdpa", "flex_attention", "flash_attention_2")
LOSS = "linear_cross_entropy"
COLUMNS = ("error", "padded_error", "gradient_error", "packed_error", "decoding_error", "step_ms")


@dataclass
class Settings:
    """What to measure and how large."""

    backends: list[str] = field(
        default_factory=lambda: [*BACKENDS, LOSS], metadata={"help": "rows of the table"}
    )
    limit_seconds: int = field(default=240, metadata={"help": "time one process may take"})
    sequence_length: int = field(default=2048, metadata={"help": "tokens a row in the timed steps"})
    micro_batch: int = field(default=8, metadata={"help": "rows in the timed steps"})
    num_samples: int = field(default=10, metadata={"help": "timed steps after three to warm up"})
    loss_tokens: int = field(default=16384, metadata={"help": "tokens of the loss measurement"})
    vocab_size: int = field(default=151936, metadata={"help": "rows of the head in the loss measurement"})
    smoke: bool = field(default=False, metadata={"help": "tiny sizes, on the CPU if there is no GPU"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})
    measure: str = field(default="", metadata={"help": "used by the script itself: the one row to measure"})
    result: str = field(default="", metadata={"help": "used by the script itself: where to write that row"})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if settings.measure:
        measured = measure_loss(settings) if settings.measure == LOSS else measure_backend(settings)
        write_atomically(settings.result, json.dumps(measured))
        return 0
    unknown = set(settings.backends) - {*BACKENDS, LOSS}
    if unknown:
        raise FoundryError(f"--backends: {sorted(unknown)} not among {', '.join((*BACKENDS, LOSS))}")
    if settings.smoke and settings.receipt:
        raise FoundryError("receipt: a trial with tiny sizes is none; expected no smoke")
    rows = {name: measure_in_process(name, settings) for name in settings.backends}
    results.save_result("attention_backends", result_of(rows))
    print_table(rows)
    results.finish("attention_backends", result_of(rows), settings.receipt)
    return 1 if any("failure" in row for row in rows.values()) else 0


def measure_in_process(name: str, settings: Settings) -> dict[str, Any]:
    """The row of one backend, or ``{"failure": why}``."""
    print(f"measuring {name} …", flush=True)
    forwarded = {
        key: value
        for key, value in vars(settings).items()
        if key not in ("backends", "measure", "result", "receipt")
    }
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "row.json"
        command = [sys.executable, __file__, f"--measure={name}", f"--result={result}"]
        command += [f"--{key}={str(value).lower()}" for key, value in forwarded.items()]
        started = time.perf_counter()
        try:
            process = subprocess.run(
                command, capture_output=True, text=True, timeout=settings.limit_seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return {"failure": f"more than {settings.limit_seconds} s"}
        if process.returncode or not result.is_file():
            lines = process.stderr.strip().splitlines() or [f"exit {process.returncode}"]
            print("\n".join(lines[-40:]), file=sys.stderr)
            return {"failure": lines[-1][:300]}
        return json.loads(result.read_text()) | {"process_seconds": time.perf_counter() - started}


def measure_backend(settings: Settings) -> dict[str, Any]:
    """Errors and times of ``settings.measure``; raises what the backend raises."""
    import torch

    from modeling_foundry import FoundryModel
    from modeling_foundry.model.configuration_foundry import attention_implementation

    device = choose_device(settings)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(0)
    reference = FoundryModel(configuration(settings)).to(device).eval()
    reference.set_attn_implementation("eager")
    model = FoundryModel(configuration(settings)).to(device).eval()
    model.load_state_dict(reference.state_dict())
    model.to(torch.bfloat16).set_attn_implementation(attention_implementation(settings.measure))
    row = compare(model, reference, device, settings)
    del reference
    row["step_ms_samples"] = time_steps(model, settings, device)
    started = time.perf_counter()
    for layer in model.layers:
        layer.compile()
    step(model, settings, device)
    row["compile_seconds"] = time.perf_counter() - started
    row["compiled_step_ms_samples"] = time_steps(model, settings, device)
    for name in ("step_ms", "compiled_step_ms"):
        row[name] = statistics.median(row[f"{name}_samples"])
    return row


def compare(model: Any, reference: Any, device: Any, settings: Settings) -> dict[str, float]:
    """Errors of hidden states whole, padded, packed and decoded, and of the padded rows' gradients."""
    import torch

    length = 32 if settings.smoke else 1024
    tokens = torch.randint(0, model.config.vocab_size, (2, length), device=device)
    mask = torch.ones_like(tokens)
    mask[0, : length // 4] = 0
    mask[1, -length // 3 :] = 0
    positions = torch.cat([torch.arange(length // 4), torch.arange(length - length // 4)]).to(device)
    real = mask.bool()
    errors = {}
    with torch.no_grad():
        expected = reference(tokens).last_hidden_state
        errors["error"] = relative_error(model(tokens).last_hidden_state, expected)
        errors["decoding_error"] = relative_error(decode(model, tokens), expected)
        packed = {"position_ids": positions.expand(2, -1)}
        expected = reference(tokens, **packed).last_hidden_state
        errors["packed_error"] = relative_error(model(tokens, **packed).last_hidden_state, expected)
    outputs, direction = [], torch.randn(model.config.hidden_size, device=device)
    for one in (reference, model):
        outputs.append(one.train()(tokens, attention_mask=mask).last_hidden_state)
        (outputs[-1][real].float() * direction).mean().backward()
        one.eval()
    errors["padded_error"] = relative_error(outputs[1][real], outputs[0][real])
    if not outputs[1].isfinite().all():
        raise FloatingPointError(f"{settings.measure}: padding gives values that are not finite")
    gradients = [one.layers[0].self_attn.q_proj.weight.grad for one in (model, reference)]
    errors["gradient_error"] = relative_error(*gradients)
    model.zero_grad()
    return errors


def decode(model: Any, tokens: Any) -> Any:
    """Hidden states of a prefill of all but three tokens and three single steps with a cache."""
    import torch

    prefill = model(tokens[:, :-3], use_cache=True)
    states = [prefill.last_hidden_state]
    for i in range(tokens.shape[1] - 3, tokens.shape[1]):
        states.append(
            model(
                tokens[:, i : i + 1], past_key_values=prefill.past_key_values, use_cache=True
            ).last_hidden_state
        )
    return torch.cat(states, dim=1)


def time_steps(model: Any, settings: Settings, device: Any) -> list[float]:
    """Milliseconds of each timed forward and backward pass."""
    for _ in range(3):
        step(model, settings, device)
    return [step(model, settings, device) for _ in range(settings.num_samples)]


def step(model: Any, settings: Settings, device: Any) -> float:
    """Milliseconds of one training pass through the body, without an optimizer."""
    import torch

    shape = (2, 32) if settings.smoke else (settings.micro_batch, settings.sequence_length)
    tokens = torch.randint(0, model.config.vocab_size, shape, device=device)
    model.train()
    synchronize(device)
    started = time.perf_counter()
    states = model(tokens).last_hidden_state
    states.float().square().mean().backward()
    synchronize(device)
    model.zero_grad()
    return 1000 * (time.perf_counter() - started)


def measure_loss(settings: Settings) -> dict[str, Any]:
    """Peak memory, time and errors of the whole-logits loss and the chunked one, in bf16 against fp32."""
    import torch

    from modeling_foundry.model.losses import cross_entropy, linear_cross_entropy

    device = choose_device(settings)
    torch.backends.cuda.matmul.allow_tf32 = False
    num_tokens, vocabulary, hidden = (
        (64, 500, 32) if settings.smoke else (settings.loss_tokens, settings.vocab_size, 2048)
    )
    torch.manual_seed(0)
    states = torch.randn(num_tokens, hidden, device=device)
    weight = 0.02 * torch.randn(vocabulary, hidden, device=device)
    labels = torch.randint(0, vocabulary, (num_tokens,), device=device)
    chunk_tokens = 16 if settings.smoke else 8192
    ways = {
        "plain": lambda s, w: cross_entropy(s @ w.T, labels),
        "linear": lambda s, w: linear_cross_entropy(s, w, labels, chunk_tokens=chunk_tokens),
    }
    truth = loss_and_gradients(ways["linear"], states, weight, device)
    row: dict[str, Any] = {"num_tokens": num_tokens, "vocab_size": vocabulary, "chunk_tokens": chunk_tokens}
    for name, way in ways.items():
        halves = states.bfloat16(), weight.bfloat16()
        samples = [loss_and_gradients(way, *halves, device) for _ in range(5)]
        row[name] = {
            "peak_gib": samples[-1]["peak_bytes"] / 2**30,
            "ms": statistics.median(sample["ms"] for sample in samples[2:]),
            "ms_samples": [sample["ms"] for sample in samples],
            "loss_error": relative_error(samples[-1]["loss"], truth["loss"]),
            "state_gradient_error": relative_error(samples[-1]["gradients"][0], truth["gradients"][0]),
            "weight_gradient_error": relative_error(samples[-1]["gradients"][1], truth["gradients"][1]),
        }
        del samples
    return row


def loss_and_gradients(way: Any, states: Any, weight: Any, device: Any) -> dict[str, Any]:
    """One loss with its gradients; peak memory is counted above what was held before."""
    import torch

    states, weight = states.detach().requires_grad_(), weight.detach().requires_grad_()
    held = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    synchronize(device)
    started = time.perf_counter()
    loss = way(states, weight)
    gradients = torch.autograd.grad(loss, (states, weight))
    synchronize(device)
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else 0
    milliseconds = 1000 * (time.perf_counter() - started)
    return {"loss": loss.detach(), "gradients": gradients, "ms": milliseconds, "peak_bytes": peak}


def choose_device(settings: Settings) -> Any:
    import torch

    if not torch.cuda.is_available() and not settings.smoke:
        raise FoundryError(
            "no CUDA device: the measurement needs one (--smoke=true runs tiny sizes anywhere)"
        )
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def configuration(settings: Settings) -> Any:
    """Four layers of the flagship, with a small vocabulary: only the body is measured."""
    from modeling_foundry import FoundryConfig

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    small = {**sizes, "head_dim": 16} if settings.smoke else {}
    return FoundryConfig(num_hidden_layers=4, vocab_size=1024, **small)


def relative_error(found: Any, reference: Any) -> float:
    return ((found.float() - reference.float()).norm() / reference.float().norm()).item()


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def result_of(rows: dict[str, Any]) -> dict[str, Any]:
    """Raw samples and what they were measured on."""
    import torch

    from modeling_foundry.run_record import describe_machine, git_commit, package_versions

    return {
        "command": "python benchmarks/attention_backends.py",
        "commit": git_commit(),
        "machine": describe_machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": package_versions(),
        "rows": rows,
    }


def print_table(rows: dict[str, Any]) -> None:
    header = "".join(f"{name.replace('_error', ''):>10}" for name in (*COLUMNS, "compiled"))
    print(f"\n{'backend':<18}{header}   (errors relative to fp32 eager; ms of a forward and backward pass)")
    for name, row in rows.items():
        if "failure" in row:
            print(f"{name:<18} FAILED: {row['failure']}")
        elif name != LOSS:
            values = [row.get(column) for column in (*COLUMNS, "compiled_step_ms")]
            print(f"{name:<18}" + "".join(f"{'-' if v is None else format(v, '.4g'):>10}" for v in values))
    if "plain" in rows.get(LOSS, {}):
        row = rows[LOSS]
        print(
            f"\nloss of {row['num_tokens']:,} tokens, {row['vocab_size']:,} rows, chunks of {row['chunk_tokens']:,}"
        )
        for way in ("plain", "linear"):
            one = row[way]
            errors = f"gradient errors {one['state_gradient_error']:.2g} {one['weight_gradient_error']:.2g}"
            print(f"  {way:<8}{one['peak_gib']:8.2f} GiB peak {one['ms']:9.1f} ms   {errors}")


if __name__ == "__main__":
    run(main)
