"""A small data folder, and tiny checkpoints whose answers are known."""

import json
from pathlib import Path

import pytest

VERBS = [
    "add",
    "remove",
    "count",
    "open",
    "close",
    "read",
    "write",
    "sort",
    "find",
    "parse",
    "print",
    "merge",
]
NOUNS = ["items", "lines", "files", "words", "paths", "keys", "values", "names"]


def function_pairs() -> list[tuple[str, str, str]]:
    """Module, prompt and true summary of 48 functions in six modules."""
    pairs = []
    for index in range(48):
        verb, noun = VERBS[index % 12], NOUNS[(index * 5 + index // 12) % 8]
        module = f"package{index % 6}.part{index % 2}"
        pairs.append(
            (module, f"Summarize.\ndef {verb}_{noun}_{index}(x):", f"{verb.title()} all {noun} of x{index}.")
        )
    return pairs


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """What prepare_data.py writes for evaluation: 8 texts, 48 summaries, 48 preference pairs."""
    folder = tmp_path_factory.mktemp("data")
    pairs = function_pairs()
    lines = [f"def {verb}(x):\n    return {verb}_all(x, '{noun}é')\n" for verb in VERBS for noun in NOUNS]
    texts = [
        {"module": f"package{index}", "text": "".join(lines[index :: 8 - index % 3])} for index in range(8)
    ]
    summaries, preferences = [], []
    for index, (module, prompt, summary) in enumerate(pairs):
        user, answer = {"role": "user", "content": prompt}, {"role": "assistant", "content": summary}
        wrong = {"role": "assistant", "content": pairs[(index + 7) % 48][2]}
        named = {"module": module, "function": f"function_{index}"}
        summaries.append({"messages": [user, answer], **named})
        preferences.append({"prompt": [user], "chosen": [answer], "rejected": [wrong], **named})
    for name, rows in (("heldout", texts), ("sft_heldout", summaries), ("dpo_heldout", preferences)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """The house's tokenizer, trained on the small texts."""
    from modeling_foundry.data.tokenizer.training import train_tokenizer

    return train_tokenizer([f"{prompt} {summary}" for _, prompt, summary in function_pairs()], vocab_size=384)


@pytest.fixture(scope="session")
def build_checkpoint(tmp_path_factory, tokenizer):
    """A function that saves a tiny random model, changed by ``rig(model)``, and gives its folder."""

    def build(name: str, seed: int = 0, rig=None, **changes) -> Path:
        import torch

        from modeling_foundry import FoundryConfig, FoundryForCausalLM

        torch.manual_seed(seed)
        config = FoundryConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=96,
            initializer_range=0.3, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
            **changes,
        )  # fmt: skip
        model = FoundryForCausalLM(config)
        if rig is not None:
            with torch.no_grad():
                rig(model)
        folder = tmp_path_factory.mktemp(name) / name / "model"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def always_says(build_checkpoint):
    """Returns a function that saves a model which gives one token the highest logit whatever it reads."""

    def build(name: str, token_id: int) -> Path:
        def rig(model):
            model.model.norm.weight.zero_()
            model.model.norm.bias.fill_(1.0)
            model.lm_head.weight.zero_()
            model.lm_head.weight[token_id].fill_(1.0)

        return build_checkpoint(name, rig=rig, normalization="layernorm", tie_word_embeddings=False)

    return build
