"""Foundry checkpoints to and from stock Qwen3 and Llama, with a parity gate.

A model whose components are Qwen3's (or Llama's) has their parameter names, shapes and arithmetic, so its
weights move unchanged.  Published as stock ``model_type: qwen3`` (or ``llama``) it needs no remote code; which readers
were tried, and what llama.cpp's converter must be told of a vocabulary of one's own, is in docs/publish.md.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from ..files import model_hash, settle
from ..run_record import write_run_record
from ..saved_model import load_model, require_checkpoint
from ..settings import FoundryError
from .configuration_foundry import FoundryConfig
from .modeling_foundry import FoundryForCausalLM
from .portable_files import (
    GENERATION,
    check_generation_config,
    read_object,
    write_portable_config,
    write_portable_tokenizer,
)

# Everything of a checkpoint folder but weights, config and custom code.
COMPANION_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


@dataclass(frozen=True)
class Family:
    """A stock architecture: its classes, the components it has, and its fields that must be off."""

    config_class: type[PreTrainedConfig]
    model_class: type[PreTrainedModel]
    components: dict[str, Any]
    own_fields: tuple[str, ...]
    must_be_off: tuple[str, ...]


_COMMON = {
    "normalization": "rmsnorm",
    "position_encoding": "rope",
    "ffn_type": "swiglu",
    "hidden_act": "silu",
}
FAMILIES = {
    "qwen3": Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        {**_COMMON, "qk_norm": True, "mlp_bias": False},
        (),
        ("use_sliding_window",),
    ),
    "llama": Family(LlamaConfig, LlamaForCausalLM, {**_COMMON, "qk_norm": False}, ("mlp_bias",), ()),
}


@dataclass(frozen=True)
class Parity:
    """Result of the parity gate: the probe's size and what it found, which is zero and equal."""

    num_probe_tokens: int
    max_logit_difference: float
    greedy_tokens_equal: bool


def blocking_components(config: FoundryConfig, family: str) -> list[str]:
    """The components, as ``name=value``, that a stock family does not have; empty when it has them all."""
    components = _family(family).components
    return [
        f"{name}={getattr(config, name)}" for name in components if getattr(config, name) != components[name]
    ]


def to_qwen3(model: FoundryForCausalLM) -> Qwen3ForCausalLM:
    """A stock Qwen3 model with the same weights; raises FoundryError naming the component that blocks it."""
    return _to_stock(model, "qwen3")


def to_llama(model: FoundryForCausalLM) -> LlamaForCausalLM:
    """A stock Llama model with the same weights; raises FoundryError naming the component that blocks it."""
    return _to_stock(model, "llama")


def from_qwen3(model: Qwen3ForCausalLM) -> FoundryForCausalLM:
    """A Foundry model with a Qwen3 model's weights; raises FoundryError naming what it cannot honour."""
    return _from_stock(model, "qwen3")


def from_llama(model: LlamaForCausalLM) -> FoundryForCausalLM:
    """A Foundry model with a Llama model's weights; raises FoundryError naming what it cannot honour."""
    return _from_stock(model, "llama")


def export_stock(checkpoint: str | Path, output: str | Path, family: str = "qwen3") -> Parity:
    """Write a checkpoint folder as a stock one that needs no remote code: a Foundry one, or one of that family.

    The folder appears at ``output`` only after its logits, read back from disk, equal the original's bit for
    bit in fp32 and greedy decoding gives the same tokens.  Weights keep the checkpoint's dtype; the other files are
    written so that transformers 4 and readers of their own read them as transformers 5 does
    (:mod:`.portable_files`).

    Raises:
        FoundryError: a component the family lacks, files that contradict each other, an output folder that is not
            empty, or no parity.
    """
    stock = _family(family).model_class  # refused before anything is read
    if model_type_of(checkpoint) == family:  # fine-tuned from a stock checkpoint: nothing to convert
        return _convert_folder(checkpoint, output, stock, lambda model: model, _write_for_every_reader)
    return _convert_folder(
        checkpoint,
        output,
        FoundryForCausalLM,
        lambda model: _to_stock(model, family),
        _write_for_every_reader,
    )


def import_stock(checkpoint: str | Path, output: str | Path, family: str = "qwen3") -> Parity:
    """Write a stock checkpoint folder as a Foundry one, custom code included, under the same gate."""
    return _convert_folder(
        checkpoint,
        output,
        _family(family).model_class,
        lambda model: _from_stock(model, family),
        _copy_companions,
    )


def model_type_of(checkpoint: str | Path) -> Any:
    """What a checkpoint's ``config.json`` says it is.

    Raises:
        FoundryError: there is no checkpoint, or its configuration is no JSON object.
    """
    require_checkpoint(Path(checkpoint))
    return read_object(Path(checkpoint) / "config.json").get("model_type")


def measure_parity(original: PreTrainedModel, converted: PreTrainedModel, num_new_tokens: int = 16) -> Parity:
    """Compare fp32 logits on random tokens, one row left-padded, and greedy continuations of them."""
    config = original.config
    length = max(min(64, config.max_position_embeddings - num_new_tokens), 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab_size, (2, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[1, : length // 4] = 0
    logits, texts = [], []
    for model in (original, converted):
        model.eval()
        with torch.no_grad():
            logits.append(model(tokens, attention_mask=mask).logits)
        # Plain greedy: what the checkpoint says of sampling and stopping is no part of the comparison.
        own, model.generation_config = model.generation_config, GenerationConfig(pad_token_id=0)
        texts.append(
            model.generate(tokens, attention_mask=mask, max_new_tokens=num_new_tokens, do_sample=False)
        )
        model.generation_config = own
    difference = (logits[0] - logits[1]).abs().max().item()
    return Parity(tokens.numel(), difference, torch.equal(*texts))


def _family(family: str) -> Family:
    if family not in FAMILIES:
        raise FoundryError(f"family {family!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[family]


def _to_stock(model: FoundryForCausalLM, family: str) -> Any:
    blocked = blocking_components(model.config, family)
    if blocked:
        raise FoundryError(f"cannot become a stock {family} model: it has no {', '.join(blocked)}")
    target = _family(family)
    fields = {name: getattr(model.config, name) for name in (*SHARED_FIELDS, *target.own_fields)}
    return _rebuild(model, target.model_class, target.config_class(**_copied(fields)))


def _from_stock(model: PreTrainedModel, family: str) -> FoundryForCausalLM:
    source, config = _family(family), model.config
    if not isinstance(model, source.model_class):
        raise FoundryError(f"{type(model).__name__} is not {source.model_class.__name__}")
    for name in source.must_be_off:
        if getattr(config, name, None):
            raise FoundryError(f"cannot become a foundry model: it has no {name}={getattr(config, name)}")
    if config.hidden_act != "silu":
        raise FoundryError(
            f"cannot become a foundry model: it has no gated FFN with hidden_act={config.hidden_act}"
        )
    fields = {name: getattr(config, name) for name in (*SHARED_FIELDS, *source.own_fields)}
    try:
        ours = FoundryConfig(**_copied({**source.components, **fields}))
    except ValueError as error:
        raise FoundryError(f"cannot become a foundry model: {error}") from error
    return _rebuild(model, FoundryForCausalLM, ours)


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in fields.items()}


def _rebuild(model: PreTrainedModel, model_class: type, config: PreTrainedConfig) -> Any:
    """A model of another class with the same tensors, moved strictly: no key may be missing or left over."""
    rebuilt = model_class(config).to(dtype=model.dtype)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    rebuilt.generation_config = model.generation_config
    return rebuilt.train(model.training)


def _convert_folder(
    checkpoint: str | Path,
    output: str | Path,
    source_class: Any,
    convert: Callable[[Any], PreTrainedModel],
    write_rest: Callable[[Path, Path, PreTrainedModel], None],
) -> Parity:
    checkpoint, output = Path(checkpoint), Path(output)
    if output.exists() and any(output.iterdir()):
        raise FoundryError(f"{output}: not empty; name a new folder")
    require_checkpoint(checkpoint)
    _require_kind(checkpoint, source_class.config_class.model_type)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        converted = convert(load_model(checkpoint, source_class))
        check_generation_config(checkpoint, converted.config.vocab_size)
        converted.save_pretrained(staging)
        write_rest(checkpoint, staging, converted)
        parity = _gate(checkpoint, staging, source_class, type(converted))
        settle(staging)
        staging.replace(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return parity


def _copy_companions(checkpoint: Path, staging: Path, model: PreTrainedModel) -> None:
    """The rest of an imported folder, and a record of where its weights are from: publishing asks for it."""
    for name in COMPANION_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, staging / name)
    source = {"checkpoint": str(checkpoint.resolve())}
    write_run_record(staging, {"import": source}, inputs={"model": model_hash(checkpoint)})


def _write_for_every_reader(checkpoint: Path, staging: Path, model: PreTrainedModel) -> None:
    if (checkpoint / GENERATION).is_file():
        shutil.copyfile(checkpoint / GENERATION, staging / GENERATION)
    write_portable_config(staging)
    if (checkpoint / "tokenizer.json").is_file():
        config = model.config
        write_portable_tokenizer(checkpoint, staging, config.max_position_embeddings, config.vocab_size)


def _require_kind(checkpoint: Path, model_type: str) -> None:
    """Refuse a folder of another architecture: Mistral's and Granite's tensors have Llama's names and shapes too."""
    path = checkpoint / "config.json"
    config = read_object(path)
    if config.get("model_type") != model_type:
        raise FoundryError(
            f"{path}: model_type {config.get('model_type')!r} is not {model_type!r}, whose arithmetic its weights "
            "would get"
        )
    if config.get("quantization_config"):
        raise FoundryError(f"{path}: quantization_config; convert the checkpoint it was quantized from")


def _gate(checkpoint: Path, staging: Path, source_class: Any, target_class: Any) -> Parity:
    original = load_model(checkpoint, source_class, dtype=torch.float32)
    parity = measure_parity(original, load_model(staging, target_class, dtype=torch.float32))
    if parity.max_logit_difference != 0 or not parity.greedy_tokens_equal:
        raise FoundryError(f"{checkpoint}: the converted model differs from the original: {parity}")
    return parity
