"""Does a model end its answers by itself?

An answer is *ended* only where the model itself produced ``<|im_end|>`` (or another of its end tokens) before
the limit of new tokens; everything else was *cut*.  Text lengths say nothing about it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...settings import FoundryError
from ..items.prompts import Prompt
from ..outcomes import Outcomes, group_of
from .tokens import question, rendered_ids

END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True)
class Answer:
    """What a model said, and whether it ended by itself within ``num_tokens`` new tokens."""

    text: str
    ended: bool
    num_tokens: int


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

    from ...saved_model import load_model, load_tokenizer

    transformers.utils.logging.disable_progress_bar()  # the bar of a load that takes no time
    model: Any = load_model(model_folder, dtype=torch.float32).to(device)
    tokenizer = load_tokenizer(model_folder)
    stops = stop_token_ids(model_folder, tokenizer)
    asked = [
        rendered_ids(tokenizer, question(tokenizer, prompt.messages, prompt.carried)) for prompt in prompts
    ]
    order = sorted(range(len(asked)), key=lambda index: -len(asked[index]))
    answers: dict[int, Answer] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = _generate(model, tokenizer, [asked[index] for index in batch], stops, max_new_tokens)
        for index, row in zip(batch, rows, strict=True):
            answers[index] = read_answer(row, stops, tokenizer)
    return [answers[index] for index in range(len(prompts))]


def stop_token_ids(model_folder: Path, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the end of the turn, and what the model's own configuration names.

    Raises:
        FoundryError: there is none.
    """
    configured = _generation_config(model_folder).eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    stops = {tokenizer.get_vocab().get(END_OF_TURN), *ids} - {None}
    if not stops:
        raise FoundryError(
            f"{model_folder}: nothing ends an answer: no token {END_OF_TURN}, and no eos_token_id is configured"
        )
    return sorted(stops)


def _generation_config(model_folder: Path) -> Any:
    from transformers import AutoConfig, GenerationConfig

    if (model_folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(model_folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model_folder))


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
    model: Any, tokenizer: Any, asked: list[list[int]], stops: list[int], max_new_tokens: int
) -> list[list[int]]:
    """New token ids of each prompt.  A row that ends early is padded; its first stop token comes before."""
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
    longest = max(map(len, asked))
    rows = [[padding] * (longest - len(ids)) + ids for ids in asked]
    seen = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in asked]
    padded = {"input_ids": rows, "attention_mask": seen}
    inputs = {name: torch.tensor(value, device=model.device) for name, value in padded.items()}
    with torch.inference_mode():
        output = model.generate(**inputs, generation_config=config)
    return output[:, longest:].tolist()
