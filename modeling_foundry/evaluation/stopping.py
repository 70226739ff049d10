"""Does a model end its answers by itself?

An answer is *ended* only where the model itself produced ``<|im_end|>`` (or another of its end tokens) before
the limit of new tokens; everything else was *cut*.  Text lengths say nothing about it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..settings import FoundryError
from .outcomes import Outcomes, group_of

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Prompt:
    """A held-out question with its true answer."""

    module: str
    function: str
    content: str
    truth: str


@dataclass(frozen=True)
class Answer:
    """What a model said, and whether it ended by itself within ``num_tokens`` new tokens."""

    text: str
    ended: bool
    num_tokens: int


def prompt_of(line: dict[str, Any]) -> Prompt:
    """A line of ``sft_heldout.jsonl`` as a prompt."""
    user, assistant = line["messages"]
    return Prompt(line["module"], line["function"], user["content"], assistant["content"])


def prompts_that_fit(prompts: list[Prompt], models: list[Path], max_new_tokens: int) -> list[Prompt]:
    """Prompts that leave room for an answer in the context of every model.

    Raises:
        FoundryError: none does.
    """
    kept = prompts
    for model in models:
        tokenizer, positions = _tokenizer(model), _max_positions(model)
        kept = [
            prompt
            for prompt in kept
            if len(tokenizer(_chat(tokenizer, prompt)).input_ids) + max_new_tokens <= positions
        ]
    if not kept:
        raise FoundryError(
            f"max_new_tokens: no held-out prompt leaves room for {max_new_tokens} tokens; lower it"
        )
    return kept


def answer_prompts(
    model_folder: Path,
    prompts: list[Prompt],
    max_new_tokens: int,
    batch_size: int,
    device: str,
) -> list[Answer]:
    """Greedy answers in the order of the prompts, in left-padded batches of about equal length."""
    import torch
    import transformers

    from ..saved_model import load_model

    transformers.utils.logging.disable_progress_bar()  # the bar of a load that takes no time
    model: Any = load_model(model_folder, dtype=torch.float32).to(device)
    tokenizer = _tokenizer(model_folder)
    stops = stop_token_ids(model, tokenizer)
    texts = [_chat(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = _generate(model, tokenizer, [texts[index] for index in batch], stops, max_new_tokens)
        for index, row in zip(batch, rows, strict=True):
            answers[index] = read_answer(row, stops, tokenizer)
    return [answers[index] for index in range(len(prompts))]


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the end of the turn, and what the model's own configuration names.

    Raises:
        FoundryError: the tokenizer has no end-of-turn token.
    """
    end_of_turn = tokenizer.get_vocab().get(END_OF_TURN)
    if end_of_turn is None:
        raise FoundryError(f"{tokenizer.name_or_path}: its tokenizer has no {END_OF_TURN}")
    configured = model.generation_config.eos_token_id
    if configured is None:
        configured = []
    configured = [configured] if isinstance(configured, int) else list(configured)
    return sorted({end_of_turn, *configured})


def read_answer(row: list[int], stops: list[int], tokenizer: Any) -> Answer:
    """The answer in a row of new tokens: up to its first stop token, and cut where there is none."""
    end = next((place for place, token in enumerate(row) if token in stops), None)
    text = tokenizer.decode(row if end is None else row[:end], skip_special_tokens=True)
    return Answer(text.strip(), ended=end is not None, num_tokens=len(row) if end is None else end + 1)


def outcomes_of(prompts: list[Prompt], answers: list[Answer]) -> Outcomes:
    """Ended answers as hits."""
    return Outcomes(
        totals=np.asarray([float(answer.ended) for answer in answers]),
        weights=np.ones(len(answers)),
        groups=tuple(group_of(asdict(prompt), "") for prompt in prompts),
        documents=tuple(f"{prompt.module}:{prompt.content}" for prompt in prompts),
    )


def _generate(
    model: Any, tokenizer: Any, texts: list[str], stops: list[int], max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each text.  A row that ends early is padded; its first stop token comes before."""
    import torch
    from transformers import GenerationConfig

    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=padding,
        use_cache=True,
    )
    inputs = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
    )
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=config)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def _tokenizer(model: Path) -> Any:
    from ..saved_model import load_tokenizer

    tokenizer = load_tokenizer(model)
    if tokenizer.chat_template is None:
        raise FoundryError(f"{model}: its tokenizer has no chat template")
    return tokenizer


def _chat(tokenizer: Any, prompt: Prompt) -> str:
    messages = [{"role": "user", "content": prompt.content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _max_positions(model: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model).max_position_embeddings
