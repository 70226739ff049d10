"""The model card: what a stranger must know, from the files of the run itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..parameters import count_parameters
from .settings import PublishSettings


def model_card(settings: PublishSettings, config: Any, family: str, why: str) -> str:
    """Markdown with the Hub's front matter.

    Args:
        config: the FoundryConfig of the checkpoint.
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
        f"It reads at most {config.max_position_embeddings:,} tokens, prompt and answer together. It can state "
        "what is false with confidence, repeats the biases of its training data, and has had no safety "
        "training. Measure it on your own task before you rely on it.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(settings: PublishSettings) -> str:
    return (
        f"---\nlicense: {settings.license}\nlibrary_name: transformers\npipeline_tag: text-generation\n"
        "tags:\n- llm-foundry\n---"
    )


def _architecture_table(config: Any, family: str) -> str:
    rows = {
        "format": f"`{family}`",
        "parameters": f"{count_parameters(config):,}",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "feed-forward": f"{config.ffn_type}, {config.intermediate_size}",
        "attention heads": f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value, "
        f"{config.head_dim} each",
        "normalization": config.normalization + (", QK-norm" if config.qk_norm else ""),
        "positions": f"{config.position_encoding}, {config.max_position_embeddings:,}",
        "vocabulary": f"{config.vocab_size:,} rows, {'tied' if config.tie_word_embeddings else 'untied'}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _usage(settings: PublishSettings, family: str) -> str:
    trust = ", trust_remote_code=True" if family == "foundry" else ""
    where = settings.repo_id or "path/to/this/folder"
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{where}")\n'
        f'model = AutoModelForCausalLM.from_pretrained("{where}"{trust})\n'
        'chat = [{"role": "user", "content": "Summarize in one sentence.\\ndef add(left, right):"}]\n'
        "inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors='pt', "
        "return_dict=True)\n"
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=48)[0]))\n```"
    )


def _evaluation(settings: PublishSettings) -> str:
    if settings.evaluation_dir is None:
        return "No evaluation was given with this export."
    table = Path(settings.evaluation_dir) / "results.md"
    if not table.is_file():
        return f"No evaluation was found at export (`{table.name}` was not in the folder given)."
    return table.read_text().strip()
