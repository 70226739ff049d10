"""The model card: what a stranger must know, from the files of the run itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ..configuration_foundry import FoundryConfig
from ..evaluation.identity import RESULTS_NAME, describe_model
from ..evaluation.summary import build_markdown
from ..parameters import count_parameters
from ..settings import FoundryError
from .settings import PublishSettings


def model_card(settings: PublishSettings, config: FoundryConfig, family: str, why: str) -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: configuration of the trained checkpoint.
        family: ``qwen3``, ``llama`` or ``foundry``: what the exported folder is.
        why: one sentence, why it is that.
    """
    parts = [
        _front_matter(settings),
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
        f"The weights are under `{settings.license}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(settings: PublishSettings) -> str:
    metadata: dict[str, Any] = {
        "license": settings.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-foundry"],
    }
    if settings.languages:
        metadata["language"] = settings.languages
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---"


def _architecture_table(config: FoundryConfig, family: str) -> str:
    tied = "tied" if config.tie_word_embeddings else "untied"
    rows = {
        "format": f"`{family}`",
        "parameters": f"{count_parameters(config):,}",
        "layers": config.num_hidden_layers,
        "hidden size": f"{config.hidden_size:,}",
        "feed-forward": f"{config.ffn_type}, {config.intermediate_size:,}",
        "attention heads": f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value, "
        f"{config.head_dim} each",
        "normalization": config.normalization + (", QK-norm" if config.qk_norm else ""),
        "positions": f"{config.position_encoding}, {config.max_position_embeddings:,}",
        "vocabulary": f"{config.vocab_size:,} rows, input and output embeddings {tied}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(settings: PublishSettings, family: str) -> str:
    trust = ", trust_remote_code=True" if family == "foundry" else ""
    where = json.dumps(settings.repo_id or "path/to/this/folder")
    message = json.dumps(settings.example, ensure_ascii=False)
    prompt = f'inputs = tokenizer({message}, return_tensors="pt")\n'
    if (Path(settings.model) / "chat_template.jinja").is_file():
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
