"""The model card: what a stranger must know, from the files of the run itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from transformers.configuration_utils import PreTrainedConfig

from ..evaluation.identity import RESULTS_NAME, describe_model
from ..evaluation.report.summary import build_markdown
from ..model.configuration_foundry import FoundryConfig
from ..model.conversion import FAMILIES
from ..model.parameters import count_parameters, count_stock_parameters
from ..saved_model import load_tokenizer
from ..settings import FoundryError
from .lineage import Terms
from .settings import PublishSettings

COMPONENTS = ("ffn_type", "normalization", "qk_norm", "position_encoding")


def model_card(
    settings: PublishSettings, config: PreTrainedConfig, family: str, why: str, terms: Terms
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: configuration of the trained checkpoint: ours, or that of a stock family.
        family: ``qwen3``, ``llama`` or ``foundry``: what the exported folder is.
        why: one sentence, why it is that.
        terms: licence and base model.
    """
    parts = [
        _front_matter(settings, terms),
        f"# {settings.name}",
        settings.description or "A language model trained with LLM Foundry.",
        "## Model",
        _architecture_table(config, family),
        why,
        "## Use",
        _usage(settings, family),
        "## Training data",
        settings.training_data,
        "## Evaluation",
        _evaluation(settings),
        "## Limitations",
        *([settings.limitations] if settings.limitations else []),
        f"It holds at most {config.max_position_embeddings:,} tokens, prompt and answer together. It can "
        "state what is false with confidence, repeats the biases of its training data, and has had no safety "
        "training. Measure it on your own task before you rely on it.",
        "## Licence",
        _licence(terms),
    ]
    return "\n\n".join(parts) + "\n"


def _licence(terms: Terms) -> str:
    words = f"The weights are under `{terms.license}`."
    if terms.base_words is None:
        return words
    named = (
        f", whose licence is `{terms.base_license}`"
        if terms.base_license
        else "; its licence holds for them too"
    )
    return f"{words} They were fine-tuned from {terms.base_words}{named}."


def _front_matter(settings: PublishSettings, terms: Terms) -> str:
    metadata: dict[str, Any] = {
        "license": terms.license,
        **terms.extra,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-foundry"],
    }
    if terms.base_model is not None:
        metadata["base_model"] = terms.base_model
    if settings.languages:
        metadata["language"] = settings.languages
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---"


def _architecture_table(config: Any, family: str) -> str:
    """A stock configuration has no word for the components that are its family's."""
    ours = isinstance(config, FoundryConfig)
    parts = {name: getattr(config, name) for name in COMPONENTS} if ours else FAMILIES[family].components
    if not ours and config.hidden_act != "silu":
        parts = parts | {"ffn_type": f"gated {config.hidden_act}"}
    count = count_parameters(config) if ours else count_stock_parameters(config)
    tied = "tied" if config.tie_word_embeddings else "untied"
    rows = {
        "format": f"`{family}`",
        "parameters": f"{count:,}",
        "layers": config.num_hidden_layers,
        "hidden size": f"{config.hidden_size:,}",
        "feed-forward": f"{parts['ffn_type']}, {config.intermediate_size:,}",
        "attention heads": f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value, "
        f"{config.head_dim} each",
        "normalization": parts["normalization"] + (", QK-norm" if parts["qk_norm"] else ""),
        "positions": f"{parts['position_encoding']}, {config.max_position_embeddings:,}",
        "vocabulary": f"{config.vocab_size:,} rows, input and output embeddings {tied}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(settings: PublishSettings, family: str) -> str:
    trust = ", trust_remote_code=True" if family == "foundry" else ""
    where = json.dumps(settings.repo_id or "path/to/this/folder")
    message = json.dumps(settings.example, ensure_ascii=False)
    prompt = f'inputs = tokenizer({message}, return_tensors="pt")\n'
    if (
        load_tokenizer(settings.model).chat_template is not None
    ):  # in a file of its own, or in tokenizer_config.json
        prompt = (
            f'chat = [{{"role": "user", "content": {message}}}]\n'
            'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", '
            "return_dict=True)\n"
        )
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where}{trust})\n"
        f"model = AutoModelForCausalLM.from_pretrained({where}{trust})\n"
        f"{prompt}"
        'answer = model.generate(**inputs, max_new_tokens=48)[0, inputs["input_ids"].shape[1]:]\n'
        "print(tokenizer.decode(answer, skip_special_tokens=True))\n```"
    )


def _evaluation(settings: PublishSettings) -> str:
    """The evaluation's own tables, where these very weights are among those it measured.

    Raises:
        FoundryError: the file is there and is not the results of an evaluation.
    """
    if settings.evaluation_dir is None:
        return "No evaluation was given with this export."
    path = Path(settings.evaluation_dir) / RESULTS_NAME
    if not path.is_file():
        return "No evaluation was found at export."
    published = describe_model(Path(settings.model))["weights_sha256"]
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        measured = {name: model["weights_sha256"] for name, model in results["models"].items()}
        table = build_markdown(results).strip()
        versions = results["versions"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoundryError(
            f"{path}: not the results of an evaluation; remove it and evaluate again"
        ) from error
    names = [name for name, weights in measured.items() if weights == published]
    if not names:
        return "The evaluation found at export was of other weights, so its numbers are not printed here."
    return (
        f"This model is `{names[-1]}`. Measured with lm-eval {versions['lm_eval']} and transformers "
        f"{versions['transformers']} on held-out data, each score with its standard error, each verdict from "
        f"paired differences.\n\n{table}"
    )
