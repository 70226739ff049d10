"""The arithmetic of verdicts, against scipy, against a bootstrap, and by its properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from modeling_foundry.evaluation.comparison import (
    clustered_ratio,
    compare,
    estimate,
    judge,
    sign_test,
)
from modeling_foundry.evaluation.outcomes import Outcomes
from modeling_foundry.evaluation.report.labels import with_error
from modeling_foundry.settings import FoundryError

scores = st.lists(
    st.floats(-50, 50, allow_nan=False).map(lambda value: round(value, 3)), min_size=2, max_size=40
)
hits = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 6)), min_size=2, max_size=60)


def outcomes(totals, weights=None, groups=None, higher_is_better=True) -> Outcomes:
    totals = np.asarray(totals, dtype=float)
    names = tuple(map(str, range(len(totals))))
    return Outcomes(
        totals,
        np.ones(len(totals)) if weights is None else np.asarray(weights, dtype=float),
        names if groups is None else tuple(map(str, groups)),
        names,
        higher_is_better,
    )


@given(scores)
def test_without_groups_it_is_the_t_interval_of_paired_differences(values):
    before = np.linspace(0, 1, len(values))
    after = before + np.asarray(values)
    result = compare(outcomes(before), outcomes(after))
    differences = after - before
    assert result.difference == pytest.approx(differences.mean(), abs=1e-9)
    assert result.standard_error == pytest.approx(stats.sem(differences), abs=1e-9)
    if stats.sem(differences) > 1e-9:
        reference = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        assert (result.low, result.high) == pytest.approx(tuple(reference), rel=1e-6, abs=1e-9)


@given(hits)
def test_swapping_the_models_turns_the_verdict_round(rows):
    first, second, groups = zip(*rows, strict=True)
    forward = compare(outcomes(first, groups=groups), outcomes(second, groups=groups))
    back = compare(outcomes(second, groups=groups), outcomes(first, groups=groups))
    assert back.difference == pytest.approx(-forward.difference)
    assert back.p_value == pytest.approx(forward.p_value)
    opposite = {"better": "worse", "worse": "better", "no difference": "no difference"}
    assert back.verdict == opposite[forward.verdict]


@given(hits)
def test_a_claimed_difference_has_an_interval_that_excludes_zero_and_a_small_p(rows):
    first, second, groups = zip(*rows, strict=True)
    result = compare(outcomes(first, groups=groups), outcomes(second, groups=groups))
    if result.verdict != "no difference":
        assert not result.low <= 0 <= result.high
        assert result.p_value < 0.05


@given(hits)
def test_the_interval_of_a_change_holds_it_and_the_verdict_has_its_sign(rows):
    first, second, groups = zip(*rows, strict=True)
    result = compare(outcomes(first, groups=groups), outcomes(second, groups=groups))
    assert result.low <= result.difference <= result.high
    if result.verdict != "no difference":
        assert (result.verdict == "better") == (result.difference > 0)


@pytest.mark.parametrize("family", [[0, 1], [1, 0], [0, 0, 1], [0, 1, 0, 0, 1, 0, 0]])
def test_families_that_all_gain_alike_are_better_not_worse(family):
    """No spread between families: the exact interval decides, whichever item of a family stands first."""
    groups = np.repeat(np.arange(9), len(family))
    before, after = outcomes([0] * len(groups), groups=groups), outcomes(family * 9, groups=groups)
    result = compare(before, after)
    num_gains = 9 * sum(family)
    exact = stats.binomtest(num_gains, len(groups)).proportion_ci(0.95, method="exact")
    assert (result.low, result.high) == pytest.approx((exact.low, exact.high))
    assert result.verdict == "better"
    assert compare(after, before).verdict == "worse"
    alone = estimate(after)
    assert (alone.low, alone.high) == pytest.approx((exact.low, exact.high))
    shown = f"({100 * exact.low:.1f} to {100 * exact.high:.1f}%)"
    assert with_error(vars(alone), is_share=True).endswith(shown)


def test_as_many_gains_as_losses_in_every_family_are_no_difference():
    groups = np.repeat(np.arange(9), 2)
    result = compare(outcomes([0, 1] * 9, groups=groups), outcomes([1, 0] * 9, groups=groups))
    assert result.difference == 0
    assert result.low == pytest.approx(-result.high)
    assert result.low < 0
    assert result.verdict == "no difference"


@given(scores, st.integers(1, 5))
def test_a_model_never_differs_from_itself(values, num_groups):
    groups = [index % num_groups for index in range(len(values))]
    result = compare(outcomes(values, groups=groups), outcomes(values, groups=groups))
    assert result.difference == 0
    assert result.verdict == "no difference"


@given(scores)
def test_counting_every_item_twice_proves_nothing_more(values):
    """The trap that clustered errors avoid: copies of an item are not new evidence."""
    once = clustered_ratio(np.asarray(values), np.ones(len(values)), tuple(map(str, range(len(values)))))
    twice = clustered_ratio(
        np.repeat(values, 2),
        np.ones(2 * len(values)),
        tuple(str(index // 2) for index in range(2 * len(values))),
    )
    assert twice[:2] == pytest.approx(once[:2], abs=1e-9)


def test_ratio_error_agrees_with_a_bootstrap_over_documents():
    random = np.random.default_rng(3)
    sizes = random.integers(500, 60_000, 80)
    before = sizes * random.normal(2.6, 0.3, 80)
    after = before - sizes * random.normal(0.05, 0.2, 80)
    result = compare(
        outcomes(before, sizes, higher_is_better=False), outcomes(after, sizes, higher_is_better=False)
    )
    drawn = random.integers(0, 80, (4000, 80))
    resampled = (after - before)[drawn].sum(1) / sizes[drawn].sum(1)
    assert result.difference == pytest.approx((after - before).sum() / sizes.sum())
    assert result.standard_error == pytest.approx(resampled.std(), rel=0.12)
    assert (result.low, result.high) == pytest.approx(
        tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.015
    )


def test_group_errors_agree_with_a_bootstrap_over_groups():
    random = np.random.default_rng(4)
    groups = np.repeat(np.arange(40), random.integers(1, 20, 40))
    of_group = random.normal(0, 0.3, 40)
    values = of_group[groups] + random.normal(0, 0.2, len(groups))
    _, error, num_groups = clustered_ratio(values, np.ones(len(values)), tuple(map(str, groups)))
    totals, sizes = np.bincount(groups, values), np.bincount(groups)
    drawn = random.integers(0, 40, (4000, 40))
    resampled = totals[drawn].sum(1) / sizes[drawn].sum(1)
    assert num_groups == 40
    assert error == pytest.approx(resampled.std(), rel=0.12)
    assert error > 1.5 * stats.sem(values)  # taking items for independent would claim too much


def test_lower_bits_per_byte_are_better():
    sizes = np.full(12, 1000.0)
    noise = np.linspace(-20, 20, 12)
    before = outcomes(3000 + noise, sizes, higher_is_better=False)
    after = outcomes(2000 - noise, sizes, higher_is_better=False)
    assert compare(before, after).verdict == "better"
    assert compare(after, before).verdict == "worse"


def test_sign_test_is_mcnemars_exact_one():
    gains, losses, same = 14, 4, 30
    differences = np.asarray([1.0] * gains + [-1.0] * losses + [0.0] * same)
    tail = sum(math.comb(18, count) for count in range(losses + 1)) / 2**18
    assert sign_test(differences) == pytest.approx(2 * tail)
    assert sign_test(np.zeros(5)) == 1.0


def test_few_items_prove_nothing_even_when_all_changed():
    """Four of four changed: no spread, so the interval is the exact binomial one, and p = 0.125 decides."""
    result = compare(outcomes([0, 0, 0, 0]), outcomes([1, 1, 1, 1]))
    assert result.low == pytest.approx(0.025 ** (1 / 4))  # Clopper and Pearson 1934
    assert result.high == 1
    assert result.p_value == pytest.approx(0.125)
    assert result.verdict == "no difference"
    back = compare(outcomes([1, 1, 1, 1]), outcomes([0, 0, 0, 0]))
    assert (back.low, back.high) == (-result.high, -result.low)


def test_models_that_agree_everywhere_may_still_differ_a_little():
    result = compare(outcomes([0, 1] * 50), outcomes([0, 1] * 50))
    assert (result.low, result.high) == pytest.approx((-0.0362, 0.0362), abs=1e-4)


def test_one_group_has_no_error_and_no_verdict():
    result = compare(outcomes([0] * 30, groups=["a"] * 30), outcomes([1] * 30, groups=["a"] * 30))
    assert math.isnan(result.standard_error)
    assert result.verdict == "no difference"


@pytest.mark.parametrize(
    ("low", "high", "p_value", "verdict"),
    [
        (0.1, 0.3, None, "better"),
        (-0.3, -0.1, None, "worse"),
        (-0.1, 0.3, None, "no difference"),
        (0.0, 0.3, None, "no difference"),
        (0.1, 0.3, 0.049, "better"),
        (0.1, 0.3, 0.05, "no difference"),
        (math.nan, math.nan, 0.001, "no difference"),
    ],
)
def test_verdict_rule(low, high, p_value, verdict):
    assert judge(low, high, p_value, higher_is_better=True) == verdict


def test_a_rate_of_zero_has_the_exact_interval():
    result = estimate(outcomes([0] * 128))
    assert (result.value, result.low) == (0, 0)
    assert result.high == pytest.approx(1 - 0.025 ** (1 / 128))  # Clopper and Pearson 1934


def test_an_f1_of_all_zeros_is_no_rate():
    zeros = Outcomes(np.zeros(9), np.ones(9), tuple("abcdefghi"), tuple("abcdefghi"), is_rate=False)
    assert compare(zeros, zeros).p_value is None
    assert estimate(zeros).high == 0


@pytest.mark.parametrize(
    ("num_items", "verdict"), [(2, "no difference"), (5, "no difference"), (6, "better")]
)
def test_a_score_that_changes_alike_everywhere_needs_enough_families(num_items, verdict):
    """No spread, no width: how many families there are decides, as for hits and misses."""
    names = tuple("abcdef"[:num_items])
    before, after = (
        Outcomes(np.full(num_items, f1), np.ones(num_items), names, names, is_rate=False) for f1 in (0.1, 0.3)
    )
    assert compare(before, after).verdict == verdict


def test_models_measured_on_different_items_are_not_compared():
    other = Outcomes(np.zeros(2), np.ones(2), ("a", "b"), ("x", "y"))
    with pytest.raises(FoundryError, match="different items"):
        compare(outcomes([0, 1]), other)
