"""Scaling laws, budgets and their worked example."""

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import PlanError
from modeling_foundry.planning.formulas.scaling import (
    BESIROGLU_COVARIANCE,
    LAWS,
    effective_parameters,
    effective_tokens,
    optimal_parameters_for,
    predicted_loss,
)
from modeling_foundry.planning.options import BudgetCommand
from modeling_foundry.planning.reports.budget import (
    Caps,
    budget_report,
    constrained_optimum,
    minimise,
)
from tests.conftest import REPOSITORY
from tests.planning.conftest import REAL

BESIROGLU = LAWS["besiroglu"]


@pytest.fixture
def llama_7b(write_config):
    return str(write_config(REAL["llama"]))


def test_worked_example_llama_7b_on_8_h100_for_720_hours(llama_7b):
    report = budget_report(
        BudgetCommand(model=llama_7b, gpu="H100", num_gpus=8, hours=720, mfu=0.45, law="hoffmann")
    )
    given = report["given"]
    assert given["parameters"] == 6_738_415_616
    assert report["compute"]["flops"] == pytest.approx(9.2286e21, rel=1e-4)  # printed as 9.23e21
    assert given["training_flops_per_token"] / 1e9 == pytest.approx(42.86, abs=5e-3)
    assert given["tokens"] / 1e9 == pytest.approx(215.30, abs=5e-3)
    assert given["loss"] == pytest.approx(2.1506, abs=5e-5)
    titles = [step["title"][:6] for step in given["steps"]]
    assert titles == [f"Step {n}" for n in range(1, 6)]
    assert given["steps"][4]["value"] == "2.1506"


def test_why_the_earlier_tool_printed_other_numbers():
    """Its digits, taken apart: attention per sequence read as per token, and placeholders for the loss."""
    layers, heads, hidden, sequence = 32, 32, 4096, 2048
    per_sequence = 2 * heads * sequence**2 * hidden / 1e9
    assert per_sequence == pytest.approx(1099.5, abs=0.1)  # GF, printed as 1.10 of "GF a token"
    assert 3 * layers * (0.13 + 1.10 + 0.27) == pytest.approx(144.0)
    assert pytest.approx(64.03, abs=0.01) == 9.22e21 / 144e9 / 1e9
    assert pytest.approx(2.1590) == 1.69 + 0.1234 + 0.3456
    assert LAWS["hoffmann"].loss(6.738e9, 64.03e9) == pytest.approx(2.2621, abs=5e-5)  # what its own law says


@pytest.mark.parametrize(
    ("law", "parameters", "tokens", "loss"),
    [("hoffmann", 4.98e9, 309e9, 2.1442), ("besiroglu", 8.68e9, 177e9, 2.1458)],
)
def test_known_optima(law, parameters, tokens, loss):
    found = LAWS[law].optimum(9.2286e21)
    assert found == (pytest.approx(parameters, rel=2e-3), pytest.approx(tokens, rel=2e-3))
    assert LAWS[law].loss(*found) == pytest.approx(loss, abs=5e-5)


@pytest.mark.parametrize(
    ("law", "loss"), [("hoffmann", 2.2621), ("hoffmann_unrounded", 2.2244), ("besiroglu", 2.2335)]
)
def test_losses_of_each_law(law, loss):
    assert LAWS[law].loss(6.738415616e9, 64.03e9) == pytest.approx(loss, abs=1e-4)


@settings(max_examples=60)
@given(law=st.sampled_from(list(LAWS)), exponent=st.floats(17, 26))
def test_closed_form_is_the_minimum(law, exponent):
    law, flops = LAWS[law], 10**exponent
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    searched = minimise(
        lambda x: law.loss(math.exp(x), flops / 6 / math.exp(x)),
        math.log(parameters) - 5,
        math.log(parameters) + 6,
    )
    assert math.exp(searched) == pytest.approx(parameters, rel=1e-4)
    assert optimal_parameters_for(law, tokens) == pytest.approx(parameters, rel=1e-9)


# ---------------------------------------------------------------------------------------------- intervals


def test_covariance_is_the_receipt_s_and_its_errors_are_the_published_ones():
    receipt = json.loads((REPOSITORY / "benchmarks/receipts/plan_scaling_law.json").read_text())
    for row, shipped in zip(receipt["covariance"], BESIROGLU_COVARIANCE, strict=True):
        assert shipped == pytest.approx(row, rel=1e-5)
    for name, (value, error) in receipt["published"].items():
        assert getattr(BESIROGLU, name) == value
        assert BESIROGLU.standard_errors[name] == error
        assert receipt["standard_errors"][name] == pytest.approx(error, rel=0.30), name
    refit = receipt["refit"]
    assert math.exp(refit[0]) == pytest.approx(BESIROGLU.A, rel=0.02)
    assert refit[3:] == pytest.approx([BESIROGLU.alpha, BESIROGLU.beta], abs=2e-3)


def test_interval_equals_a_simulation_of_the_constants():
    import numpy as np

    mean = [
        math.log(BESIROGLU.A),
        math.log(BESIROGLU.B),
        math.log(BESIROGLU.E),
        BESIROGLU.alpha,
        BESIROGLU.beta,
    ]
    draws = np.random.default_rng(0).multivariate_normal(mean, BESIROGLU_COVARIANCE, size=20_000).T
    size, tokens = 6.7e9, 2.15e11
    losses = np.exp(draws[2]) + np.exp(draws[0]) * size ** -draws[3] + np.exp(draws[1]) * tokens ** -draws[4]
    assert BESIROGLU.half_width(size, tokens) == pytest.approx(1.96 * losses.std(), rel=0.05)
    total = draws[3] + draws[4]
    best = (draws[3] * np.exp(draws[0]) / (draws[4] * np.exp(draws[1]))) ** (1 / total)
    best = best * (1e21 / 6) ** (draws[4] / total)
    low, high = BESIROGLU.optimum_interval(1e21)
    assert math.log(high / low) / 2 == pytest.approx(1.96 * np.log(best).std(), rel=0.05)


def test_no_covariance_no_interval():
    for name in ("hoffmann", "hoffmann_unrounded", "muennighoff"):
        assert LAWS[name].half_width(1e9, 1e10) is None
        assert LAWS[name].optimum_interval(1e21) is None


def test_outside_the_fitted_range_warns():
    assert BESIROGLU.warnings(1e9, 2e10) == []
    assert "N = 7e+11 is outside" in BESIROGLU.warnings(7e11, 2e10)[0]
    assert "D = 1.5e+13 is outside" in BESIROGLU.warnings(8e9, 1.5e13)[0]


# ---------------------------------------------------------------------------------------- repeated epochs


def test_repeated_tokens_by_hand():
    assert effective_tokens(5e9, 10e9) == 5e9  # half an epoch
    assert effective_tokens(1e10, 1e10) == 1e10
    four = effective_tokens(4e10, 1e10)
    assert four == pytest.approx(1e10 * (1 + 15.387756 * (1 - math.exp(-3 / 15.387756))))
    assert four / 4e10 > 0.92  # up to four epochs are almost as good as fresh (Muennighoff et al., abstract)
    assert effective_tokens(1e18, 1e10) == pytest.approx(
        16.387756e10
    )  # and never worth more than 16.4 epochs


def test_muennighoff_s_own_constants():
    law = LAWS["muennighoff"]
    assert pytest.approx(521, abs=0.5) == law.A
    assert pytest.approx(1488, abs=1) == law.B
    assert pytest.approx(1.87, abs=5e-3) == law.E
    assert optimal_parameters_for(law, 1e11) / 1e11 == pytest.approx(0.051, abs=1e-3)  # their U_N = 0.051 U_D


@settings(max_examples=100)
@given(tokens=st.floats(1e6, 1e14), unique=st.floats(1e6, 1e13), parameters=st.floats(1e6, 1e12))
def test_repetition_never_helps_and_more_never_hurts(tokens, unique, parameters):
    law = LAWS["muennighoff"]
    assert effective_tokens(tokens, unique) <= tokens
    assert effective_tokens(tokens * 1.1, unique) >= effective_tokens(tokens, unique)
    assert effective_parameters(law, parameters, unique) <= parameters
    assume(tokens > unique)
    assert predicted_loss(law, parameters, tokens, unique) >= law.loss(parameters, tokens) * (1 - 1e-12)


@pytest.mark.parametrize("parameters", [1e9, 1e10, 1e11])
def test_the_loss_does_not_jump_where_repetition_begins(parameters):
    for law in LAWS.values():
        before, after = (predicted_loss(law, parameters, tokens, 2e9) for tokens in (2e9, 2e9 * (1 + 1e-9)))
        assert after == pytest.approx(before, abs=1e-6)


def test_a_plentiful_dataset_changes_nothing():
    assert predicted_loss(BESIROGLU, 70e9, 1e11, 1.5e13) == BESIROGLU.loss(70e9, 1e11)


def test_leave_to_repeat_is_used_instead_of_a_giant_seen_once():
    """83B parameters and one epoch of 2B tokens are no better than a third of them and several epochs."""
    for law in ("besiroglu", "muennighoff"):
        found = [
            constrained_optimum(LAWS[law], 1e21, Caps(2e9, 2e9 * epochs))[1] / 2e9 for epochs in (1, 4, 20)
        ]
        assert found == pytest.approx([1, 4, 20], rel=1e-3)


def test_muennighoff_s_own_allocation():
    """What their code prints, github.com/huggingface/datablations, README: two losses and a grid's optimum.

    The 6.34B parameters and 9.7 epochs of their figure 1 are not that optimum: "We went more extreme in Figure 1".
    """
    law, caps = LAWS["muennighoff"], Caps(25e9, 25e11)
    assert predicted_loss(law, 6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-13)
    assert predicted_loss(law, 8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-13)
    parameters, tokens = constrained_optimum(law, 1e22, caps)
    assert parameters == pytest.approx(7022364735.879969, rel=1e-3)  # their grid's steps are 0.4% apart
    assert tokens / 25e9 == pytest.approx(9.49347821910203, rel=1e-3)
    parameters, tokens = constrained_optimum(law, 9.3e21, caps)
    assert (parameters, tokens / 25e9) == (pytest.approx(6.815e9, rel=1e-3), pytest.approx(9.10, rel=1e-3))
    least = predicted_loss(law, parameters, tokens, 25e9)
    assert 1e-4 < predicted_loss(law, 6.34e9, 9.3e21 / 6 / 6.34e9, 25e9) - least < 2e-4


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [
        (2.21e19, 0.4e9, 9.2e9), (1.62e20, 1e9, 27.1e9), (2.46e22, 10e9, 410.1e9), (1.71e24, 67e9, 4.1e12),
        (1.26e25, 175e9, 12.0e12), (3.52e25, 280e9, 20.1e12), (5.65e26, 1e12, 94.1e12),
    ],
)  # fmt: skip
def test_hoffmann_s_own_table_of_optima(flops, parameters, tokens):
    """Hoffmann et al., table A3, approach 3; its FLOPs are their own count, not 6 N D."""
    found = LAWS["hoffmann_unrounded"].optimum(flops)
    assert found == (pytest.approx(parameters, rel=0.08), pytest.approx(tokens, rel=0.12))


# -------------------------------------------------------------------------------------------------- caps


def test_a_small_dataset_moves_the_optimum_to_a_larger_model():
    free = constrained_optimum(BESIROGLU, 1e22, Caps())
    capped = constrained_optimum(BESIROGLU, 1e22, Caps(unique_tokens=20e9, max_tokens=80e9))
    assert capped[1] <= 80e9 * (1 + 1e-9)
    assert capped[0] > free[0]


def test_serving_many_tokens_moves_the_optimum_to_a_smaller_model():
    free = constrained_optimum(BESIROGLU, 1e22, Caps())
    serving = constrained_optimum(BESIROGLU, 1e22, Caps(inference_tokens=1e12))
    assert serving[0] < free[0]
    spent = 6 * serving[0] * serving[1] + 2 * serving[0] * 1e12
    assert spent == pytest.approx(1e22, rel=1e-6)


@settings(max_examples=40)
@given(
    exponent=st.floats(18, 25),
    unique=st.none() | st.floats(1e8, 1e13),
    epochs=st.floats(0.5, 20),
    largest=st.none() | st.floats(1e8, 1e12),
    served=st.sampled_from([0.0, 1e10, 1e13]),
)
def test_caps_hold_and_nothing_near_is_better(exponent, unique, epochs, largest, served):
    caps = Caps(unique, None if unique is None else unique * epochs, largest, served)
    flops = 10**exponent
    parameters, tokens = constrained_optimum(BESIROGLU, flops, caps)
    assert 6 * parameters * tokens + 2 * parameters * served <= flops * (1 + 1e-6)
    assert largest is None or parameters <= largest * (1 + 1e-9)
    assert caps.max_tokens is None or tokens <= caps.max_tokens * (1 + 1e-9)
    best = predicted_loss(BESIROGLU, parameters, tokens, unique)
    for factor in (0.7, 0.95, 1.05, 1.4):
        other = parameters * factor
        affordable = (flops / other - 2 * served) / 6
        if affordable <= 1 or (largest is not None and other > largest):
            continue
        other_tokens = min(affordable, caps.max_tokens or math.inf)
        assert predicted_loss(BESIROGLU, other, other_tokens, unique) >= best - 1e-9


def test_money_hours_and_flops_say_the_same(llama_7b):
    hours = budget_report(BudgetCommand(gpu="H100", num_gpus=8, hours=100, mfu=0.4, uptime=0.9))
    money = budget_report(
        BudgetCommand(gpu="H100", num_gpus=8, usd=1600, usd_per_gpu_hour=2, mfu=0.4, uptime=0.9)
    )
    by_hand = 8 * 989e12 * 0.4 * 100 * 3600 * 0.9
    assert hours["compute"]["flops"] == pytest.approx(by_hand)
    assert money["compute"]["flops"] == pytest.approx(by_hand)
    assert hours["optima"] == money["optima"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "exactly one of"),
        ({"flops": "1e21", "hours": 3.0}, "exactly one of"),
        ({"usd": 100.0}, "usd_per_gpu_hour"),
        ({"hours": 10.0, "gpu": "L40S"}, "mfu"),
        ({"flops": "1e21", "law_e": 1.0}, "custom"),
        ({"flops": "1e21", "law": "custom", "law_e": 1.0}, "missing law_a"),
        ({"flops": "1e21", "parameters": "7B", "inference_tokens": "1e15"}, "more than the budget"),
        ({"flops": "1e21", "gpu_peak": 100.0, "fit_memory": True}, "gpu_memory_gib"),
        ({"flops": "1e21", "max_epochs": 8.0}, "max_epochs: needs --dataset_tokens"),
        ({"usd": 1e13, "usd_per_gpu_hour": 1e-300}, "budget: expected a number from 1e\\+06 to 1e\\+30"),
    ],
)
def test_impossible_budgets_are_refused(options, words):
    with pytest.raises(PlanError, match=words):
        budget_report(BudgetCommand(**options))


constants = st.fixed_dictionaries(
    {
        "law_e": st.floats(0, 100),
        "law_a": st.floats(1e-9, 1e12) | st.sampled_from([1e-9, 1e12]),
        "law_b": st.floats(1e-9, 1e12) | st.sampled_from([1e-9, 1e12]),
        "law_alpha": st.floats(0.01, 2) | st.sampled_from([0.01, 2]),
        "law_beta": st.floats(0.01, 2) | st.sampled_from([0.01, 2]),
    }
)


@settings(max_examples=100)
@given(
    law=constants,
    flops=st.sampled_from(["1e6", "1e21", "1e30"]),
    more=st.sampled_from([{}, {"dataset_tokens": "1"}, {"dataset_tokens": "1E"}, {"inference_tokens": "1T"}]),
    size=st.sampled_from([{}, {"parameters": "10K"}, {"parameters": "1000T"}]),
)
def test_any_constants_are_an_answer_or_one_line(law, flops, more, size):
    try:
        report = budget_report(BudgetCommand(flops=flops, law="custom", **law, **more, **size))
    except PlanError as error:
        assert len(str(error).splitlines()) == 1
    else:
        json.dumps(report, allow_nan=False)


def test_isoflop_curves_keep_to_what_can_be_trained():
    """Near the size whose serving takes the whole budget no tokens are left and the loss is in the thousands."""
    for options in ({"inference_tokens": "1T"}, {"max_parameters": "1B"}, {"dataset_tokens": "5B"}):
        for curve in budget_report(BudgetCommand(flops="1e21", **options))["isoflop_curves"]:
            best, points = curve["best"], curve["points"]
            assert len(points) > 10
            assert max(point["loss"] for point in points) < best["loss"] + 3
            assert min(point["loss"] for point in points) >= best["loss"] - 1e-9
            if "max_parameters" in options:
                assert max(point["parameters"] for point in points) <= 1e9 * (1 + 1e-9)


def test_the_interval_is_that_of_the_loss_shown():
    """Excess parameters are discounted in the loss, so also in its interval."""
    given_model = budget_report(BudgetCommand(flops="1e21", parameters="50B", dataset_tokens="1B"))["given"]
    size = effective_parameters(BESIROGLU, 50e9, 1e9)
    assert given_model["size_term"] == pytest.approx(BESIROGLU.A * size**-BESIROGLU.alpha)
    assert given_model["half_width"] == BESIROGLU.half_width(size, given_model["effective_tokens"])


def test_custom_law_is_the_formula():
    values = {"law_e": 2.0, "law_a": 100.0, "law_b": 200.0, "law_alpha": 0.3, "law_beta": 0.4}
    report = budget_report(BudgetCommand(flops="6e20", parameters="1B", law="custom", **values))
    expected = 2 + 100 * 1e9**-0.3 + 200 * 1e11**-0.4
    assert report["given"]["loss"] == pytest.approx(expected)
    assert report["given"]["tokens"] == pytest.approx(1e11)


def test_memory_cap_is_the_zero_1_state():
    report = budget_report(BudgetCommand(flops="1e25", gpu="A100-40", num_gpus=8, fit_memory=True))
    best = report["optima"][0]
    assert best["parameters"] == pytest.approx(40_960 * 2**20 / (4 + 12 / 8), rel=1e-6)
    assert best["bound_by"] == ["parameters"]
