"""The fixtures of tests/training: a tiny model, samples, data, and a way to launch a recipe."""

from tests.training.conftest import (  # noqa: F401  (fixtures)
    build_trainer,
    launch,
    samples,
    small_data,
    tiny_checkpoint,
    tokenizer,
    uneven,
)
