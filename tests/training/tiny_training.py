"""A tiny model under PretrainTrainer in this process, for tests of what a step computes."""

import torch

from modeling_foundry import FoundryConfig, FoundryForCausalLM
from modeling_foundry.data.sequences.sample_order import SampleOrder
from modeling_foundry.pretraining.pipeline import PretrainTrainer
from modeling_foundry.training.safety.update_guard import UpdateGuard

SEQUENCE_LENGTH, VOCABULARY = 16, 64


def tiny_model(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "loss_chunk_tokens": 24,
        "max_position_embeddings": SEQUENCE_LENGTH,
    }  # fmt: skip
    return FoundryForCausalLM(FoundryConfig(**{**sizes, **changes}))


def tiny_trainer(arguments, **changes):
    """Trainer of a tiny model on random tokens; every step is logged and nothing is saved."""
    arguments.logging_steps, arguments.save_strategy, arguments.eval_strategy = 1, "no", "no"
    arguments.disable_tqdm = True
    sequences = arguments.max_steps * arguments.train_batch_size * arguments.gradient_accumulation_steps
    ids = torch.randint(
        0, VOCABULARY, (sequences, SEQUENCE_LENGTH), generator=torch.Generator().manual_seed(1)
    )
    samples = [{"input_ids": row, "labels": row} for row in ids]
    trainer = PretrainTrainer(model=tiny_model(**changes), args=arguments, train_dataset=samples)
    order = SampleOrder(arguments.train_batch_size * arguments.gradient_accumulation_steps)
    trainer.guard_updates(UpdateGuard(arguments, arguments.output_dir, order, 1, arguments.train_batch_size))
    return trainer


def logged(trainer, name):
    """Train, and give the values of one field of the log, step by step."""
    trainer.train()
    return [line[name] for line in trainer.state.log_history if name in line]


def learning_rates(trainer):
    return logged(trainer, "learning_rate")
