"""A launcher that fell back silently does not train."""

from types import SimpleNamespace

import pytest

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.launch import assert_launched_as_asked


def state(kind="NO", processes=1):
    return SimpleNamespace(distributed_type=f"DistributedType.{kind}", num_processes=processes, device="cpu")


def test_what_was_asked_for_passes_and_is_said():
    line = assert_launched_as_asked(state("MULTI_CPU", 2), "no", 2, {"WORLD_SIZE": "2"})
    assert line == "MULTI_CPU, 2 process(es), mixed precision no, cpu"


@pytest.mark.parametrize(
    ("now", "expected", "environment", "message"),
    [
        (state(), None, {"WORLD_SIZE": "2"}, "2 processes were started but 1 train together"),
        (state(), 2, {}, "expected_processes is 2 but 1"),
        (
            state("MULTI_CPU", 2),
            None,
            {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"},
            "DEEPSPEED was",
        ),
        (
            state("MULTI_GPU", 2),
            None,
            {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"},
            "FSDP was asked for",
        ),
        (state(), None, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "asks for mixed_precision bf16"),
    ],
)
def test_a_silent_fallback_is_refused(now, expected, environment, message):
    with pytest.raises(FoundryError, match=message):
        assert_launched_as_asked(now, "no", expected, environment)
