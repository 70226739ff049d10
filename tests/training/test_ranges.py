"""Numbers no run could use are refused before anything is loaded."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.alignment.pipeline import AlignmentSettings, DPOArguments, SFTArguments
from modeling_foundry.pretraining.model_settings import ModelSettings
from modeling_foundry.pretraining.pipeline import PretrainArguments, PretrainDataSettings
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.options.ranges import RANGES, check_length, check_ranges

KINDS = (
    ModelSettings,
    PretrainDataSettings,
    PretrainArguments,
    AlignmentSettings,
    SFTArguments,
    DPOArguments,
)


def test_every_range_is_of_a_key_that_exists():
    known = {name for kind in KINDS for name in kind.__dataclass_fields__}
    assert not RANGES.keys() - known


@given(st.sampled_from(sorted(RANGES)), st.floats(allow_nan=True) | st.integers())
def test_a_number_passes_exactly_when_it_is_in_its_range(name, value):
    low, high = RANGES[name]
    inside = low <= value < high
    try:
        check_ranges(SimpleNamespace(**{name: value}))
    except FoundryError as error:
        assert not inside
        assert str(error).startswith(f"{name}: expected ")
        return
    assert inside


def arguments(**changes):
    return SimpleNamespace(
        **{
            "num_train_epochs": 3.0, "max_steps": 10,
            "train_sampling_strategy": "sequential", **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_pretraining_has_one_order_of_samples(strategy):
    """Any other sampler would read other samples than those that resume and replay name."""
    with pytest.raises(FoundryError, match=f"train_sampling_strategy: expected sequential.*'{strategy}'"):
        check_length(arguments(train_sampling_strategy=strategy), in_steps=True)
    check_length(arguments(train_sampling_strategy=strategy), in_steps=False)


def test_a_run_has_a_length():
    check_length(arguments(), in_steps=True)
    check_length(arguments(max_steps=-1), in_steps=False)
    with pytest.raises(FoundryError, match="num_train_epochs: expected more than 0"):
        check_length(arguments(max_steps=-1, num_train_epochs=0.0), in_steps=False)
    with pytest.raises(FoundryError, match="max_steps: expected at least 1, found -1"):
        check_length(arguments(max_steps=-1), in_steps=True)


def test_a_sequence_of_one_token_has_nothing_to_predict():
    with pytest.raises(FoundryError, match="sequence_length: expected at least 2, found 1"):
        check_ranges(PretrainDataSettings(sequence_length=1))
