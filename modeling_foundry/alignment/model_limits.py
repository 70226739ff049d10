"""What a checkpoint can hold, asked of its configuration and tokenizer before its weights are loaded."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from ..model.portable_files import GENERATION, check_that_it_can_be_saved
from ..saved_model import load_tokenizer
from ..settings import FoundryError
from ..terminal import console
from ..training.options.refusals import is_changed

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_model_limits(folder: str, arguments: Any) -> dict[str, int]:
    """Positions, rows of the embedding and tokens that the arguments name.

    Returns:
        What follows for the arguments: a ``max_length`` left at its default is lowered to the model's positions.

    Raises:
        FoundryError: naming the key, or the file of the checkpoint, that does not fit.
    """
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200]
        raise FoundryError(f"{folder}/config.json: cannot be read ({words})") from error
    if (generation := Path(folder) / GENERATION).is_file():  # else the trained model could not be written
        check_that_it_can_be_saved(generation)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(folder, config, tokenizer)
    check_tokens(folder, tokenizer, arguments)
    if arguments.router_aux_loss_coef and not hasattr(config, "output_router_logits"):
        raise FoundryError(f"router_aux_loss_coef: {folder} has no experts to balance; leave it out")
    return fitting_length(folder, num_positions(config), arguments, _has_table(config))


def num_positions(config: Any) -> int | None:
    """Positions that the model was made for, scaling of RoPE included; None where there is no bound (ALiBi)."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if factor is None or rope.get("rope_type", "default") == "default":
        return positions
    return max(positions, int(factor * rope.get("original_max_position_embeddings", positions)))


def _has_table(config: Any) -> bool:
    """Whether positions are rows of a matrix, beyond which a step fails, rather than angles."""
    return not getattr(config, "rope_parameters", None)


def fitting_length(folder: str, positions: int | None, arguments: Any, has_table: bool) -> dict[str, int]:
    """The default of ``max_length`` lowered to the model's positions; FoundryError for a longer one given."""
    length = arguments.max_length
    if positions is None or length is None:
        return {}
    if length > positions:
        if is_changed(arguments, "max_length"):
            raise FoundryError(
                f"max_length: {length:,} is more than the {positions:,} positions of {folder}; give at "
                f"most {positions:,}"
                + ("" if has_table else ", or rope_parameters in its config.json that scale them")
            )
        if arguments.process_index == 0:
            console.print(f"max_length: {positions:,}, the positions of {folder} (the default is more)")
        length = positions
    multiple = arguments.pad_to_multiple_of
    if has_table and multiple and -(-length // multiple) * multiple > positions:
        raise FoundryError(
            f"pad_to_multiple_of: {multiple} pads rows of {length:,} beyond the {positions:,} positions "
            f"of {folder}; give a max_length below"
        )
    return {} if length == arguments.max_length else {"max_length": length}


def check_rows_fit(folder: str, trainer: Any) -> None:
    """Where nothing is cut (``max_length: null``) the longest row must still have a position for every token."""
    positions = num_positions(trainer.model.config.get_text_config())
    if positions is None or trainer.args.max_length is not None:
        return
    for dataset in (trainer.train_dataset, trainer.eval_dataset):
        longest = max(map(_num_tokens, dataset), default=0) if dataset is not None else 0
        if longest > positions:
            raise FoundryError(
                f"max_length: null leaves a row of {longest:,} tokens, more than the {positions:,} positions of "
                f"{folder}; give at most {positions:,}"
            )


def check_there_are_steps(trainer: Any, train_file: str) -> None:
    """Raise FoundryError where every batch would be dropped for being incomplete."""
    arguments, num_samples = trainer.args, len(trainer.train_dataset)
    batch = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and num_samples < batch:
        raise FoundryError(
            f"dataloader_drop_last: {train_file} gives {num_samples:,} rows, less than one batch of {batch:,}, so none "
            "would be learned; leave it out, or lower per_device_train_batch_size"
        )


def _num_tokens(row: dict[str, Any]) -> int:
    if "input_ids" in row:
        return len(row["input_ids"])
    return len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def check_vocabulary(folder: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise FoundryError for ids that are no row of the embedding."""
    rows, highest = config.vocab_size, max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise FoundryError(
            f"{folder}: its tokenizer has ids up to {highest:,}, its embedding {rows:,} rows; give it its own "
            "tokenizer, or resize the embedding"
        )
    for name in SPECIAL_IDS:
        value = getattr(config, name, None)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not 0 <= number < rows:
                raise FoundryError(
                    f"{folder}/config.json: {name}: {number} is no row of its embedding (0 to {rows - 1:,})"
                )


def check_tokens(folder: str, tokenizer: PreTrainedTokenizerBase, arguments: Any) -> None:
    """Raise FoundryError for an end or a padding that is no token of the checkpoint."""
    vocabulary = tokenizer.get_vocab()
    for key in ("eos_token", "pad_token"):
        token = getattr(arguments, key, None)
        if token is not None and token not in vocabulary:
            near = difflib.get_close_matches(token, tokenizer.all_special_tokens, n=1, cutoff=0.3)
            one_of = near or tokenizer.all_special_tokens[:3]
            raise FoundryError(f"{key}: {token!r} is no token of {folder}; it has {', '.join(one_of)}")
    if (arguments.pad_token or tokenizer.pad_token or tokenizer.eos_token) is None:
        raise FoundryError(f"{folder}: its tokenizer has neither a padding token nor an end; give pad_token")
