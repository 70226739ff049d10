"""Verdicts, not winners: paired differences with their errors, and "no difference" where that is the truth.

Two models answer the same items, so their difference is taken item by item: what makes an item hard cancels
out.  Items of one module share names and habits, so errors are taken over families of modules, not over items
(clustered standard errors and paired differences: Miller 2024, arXiv:2411.00640).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..settings import FoundryError
from .outcomes import Outcomes

CONFIDENCE = 0.95
SIGNIFICANT_P = 0.05
Verdict = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Estimate:
    """A score with its standard error and 95% interval."""

    value: float
    standard_error: float
    low: float
    high: float
    num_items: int
    num_groups: int


@dataclass(frozen=True)
class Comparison:
    """``after`` minus ``before`` on the same items.

    Args:
        p_value: exact sign test on the items that changed (McNemar), for hits and misses; on the groups where
            all changed by the same; else None.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float | None
    num_items: int
    num_groups: int
    verdict: Verdict


def estimate(outcomes: Outcomes) -> Estimate:
    """Score of one model.  Where all groups have the same share of hits, the interval is the exact binomial one."""
    value, error, num_groups = clustered_ratio(outcomes.totals, outcomes.weights, outcomes.groups)
    low, high = interval(value, error, num_groups)
    if outcomes.is_binary:
        if _is_without_spread(error):
            error = 0.0
        if value in (0.0, 1.0) or error == 0:
            low, high = _exact_interval(int(outcomes.totals.sum()), len(outcomes.totals))
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, error, low, high, len(outcomes.totals), num_groups)


def compare(before: Outcomes, after: Outcomes) -> Comparison:
    """Paired difference of two models.

    Raises:
        FoundryError: the two were not asked the same.
    """
    if before.documents != after.documents or not np.array_equal(before.weights, after.weights):
        raise FoundryError("the two models were measured on different items; measure both again")
    differences = after.totals - before.totals
    value, error, num_groups = clustered_ratio(differences, before.weights, before.groups)
    low, high = interval(value, error, num_groups)
    p_value = None
    if before.is_binary and after.is_binary:
        p_value = sign_test(differences)
        if _is_without_spread(error):
            error = 0.0
            low, high = _exact_change(differences)
        low, high = max(-1.0, low), min(1.0, high)
    elif _is_without_spread(error) and value != 0:  # two items that changed alike are two, whatever the width
        p_value = sign_test(np.full(num_groups, value))
    verdict = judge(low, high, p_value, after.higher_is_better)
    return Comparison(value, error, low, high, p_value, len(differences), num_groups, verdict)


def clustered_ratio(
    totals: np.ndarray, weights: np.ndarray, groups: tuple[str, ...]
) -> tuple[float, float, int]:
    """``sum(totals) / sum(weights)``, its standard error, and the number of groups G.

    The error is the linearised one of a ratio over G groups (Cochran 1977, "Sampling Techniques", chapter 6):
    ``sqrt(G / (G - 1) * sum_g(r_g**2)) / sum(weights)`` with ``r_g`` the residuals of a group added up.  With
    weights of 1 and an item a group it is the standard error of the mean.  One group has no error: NaN.
    """
    value = float(totals.sum() / weights.sum())
    _, group_of_item = np.unique(np.asarray(groups), return_inverse=True)
    residuals = np.bincount(group_of_item, weights=totals - value * weights)
    num_groups = len(residuals)
    if num_groups < 2:
        return value, math.nan, num_groups
    error = math.sqrt(num_groups / (num_groups - 1) * float((residuals**2).sum())) / float(weights.sum())
    return value, error, num_groups


def interval(value: float, error: float, num_groups: int) -> tuple[float, float]:
    """95% interval by Student's t with ``num_groups - 1`` degrees of freedom."""
    from scipy.stats import t

    if num_groups < 2:
        return math.nan, math.nan
    reach = float(t.ppf((1 + CONFIDENCE) / 2, num_groups - 1)) * error
    return value - reach, value + reach


def sign_test(differences: np.ndarray) -> float:
    """Exact two-sided p of as many gains among the items that changed (McNemar 1947); 1 when none did."""
    from scipy.stats import binomtest

    num_gains, num_losses = int((differences > 0).sum()), int((differences < 0).sum())
    if num_gains + num_losses == 0:
        return 1.0
    return float(binomtest(num_gains, num_gains + num_losses, 0.5).pvalue)


def judge(low: float, high: float, p_value: float | None, higher_is_better: bool) -> Verdict:
    """A difference is claimed only where its interval excludes 0 and p, where there is one, is below 0.05."""
    excludes_zero = low > 0 or high < 0  # False for NaN: one group proves nothing
    if not excludes_zero or (p_value is not None and p_value >= SIGNIFICANT_P):
        return "no difference"
    return "better" if (low > 0) == higher_is_better else "worse"


def _is_without_spread(error: float) -> bool:
    """Whether all groups have the same share of hits or of changes; sums in floating point leave up to 1e-16."""
    return error < 1e-9  # False for NaN


def _exact_change(differences: np.ndarray) -> tuple[float, float]:
    """Interval where nothing varies between groups, and a width of 0 would claim too much: gains minus losses."""
    num_gains, num_losses = int((differences > 0).sum()), int((differences < 0).sum())
    if num_gains + num_losses == 0:
        high = _exact_interval(0, len(differences))[1]
        return -high, high
    gains, losses = (
        _exact_interval(number, len(differences)) if number else (0.0, 0.0)
        for number in (num_gains, num_losses)
    )
    return gains[0] - losses[1], gains[1] - losses[0]


def _exact_interval(num_hits: int, num_items: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    bounds = binomtest(num_hits, num_items).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)
