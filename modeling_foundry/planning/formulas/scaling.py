"""Scaling laws: the loss of N parameters trained on D tokens, the optimum of a budget, and repeated epochs.

All have the form L = E + A/N^α + B/D^β (Hoffmann et al. 2022, arXiv:2203.15556, equation 10) in nats a token
of their own tokenizer and corpus.  They were fitted to dense models; N is all parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..models.fields import PlanError

FLOPS_PER_PARAMETER_TOKEN = 6  # C = 6 N D, the laws' own convention
NORMAL_95 = 1.959964
LARGEST_LOGARITHM = 200.0  # of a size: e^200 is beyond all models and far from overflow

# Bootstrap of Besiroglu's fit over its own runs: ln A, ln B, ln E, alpha, beta.  Its standard errors agree
# with the published ones (benchmarks/plan_scaling_law.py, benchmarks/receipts/plan_scaling_law.json).
BESIROGLU_COVARIANCE = (
    (0.0636857, -0.0240302, 0.00211314, 0.00379723, -0.00120895),
    (-0.0240302, 0.174757, 0.00363841, -0.0015022, 0.0085381),
    (0.00211314, 0.00363841, 0.000197413, 0.000124758, 0.000177022),
    (0.00379723, -0.0015022, 0.000124758, 0.000226723, -7.56132e-05),
    (-0.00120895, 0.0085381, 0.000177022, -7.56132e-05, 0.000417427),
)


@dataclass(frozen=True)
class ScalingLaw:
    """L = E + A/N^alpha + B/D^beta.

    Args:
        parameters, tokens: the range its runs covered; None for constants of one's own.
        standard_errors: as published.
        covariance: of (ln A, ln B, ln E, alpha, beta); None where none can be had, and then no interval.
    """

    name: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    source: str
    parameters: tuple[float, float] | None = None
    tokens: tuple[float, float] | None = None
    standard_errors: dict[str, float] | None = None
    covariance: tuple[tuple[float, ...], ...] | None = None

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss in nats a token."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    def half_width(self, parameters: float, tokens: float) -> float | None:
        """Half of the 95% interval of the predicted loss, by the delta method; None without a covariance."""
        if self.covariance is None:
            return None
        size = self.A * parameters**-self.alpha
        data = self.B * tokens**-self.beta
        gradient = (size, data, self.E, -size * math.log(parameters), -data * math.log(tokens))
        return NORMAL_95 * math.sqrt(_quadratic(gradient, self.covariance))

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of the least loss at C = 6 N D (Hoffmann et al., equation 4).

        Raises:
            PlanError: constants whose optimum is less than one parameter or token.
        """
        total, compute = self.alpha + self.beta, math.log(flops / FLOPS_PER_PARAMETER_TOKEN)
        size = (math.log(self.alpha * self.A / (self.beta * self.B)) + self.beta * compute) / total
        if not 0 <= size <= compute:
            word = "parameter" if size < 0 else "token"
            raise PlanError(f"law: the optimum of {self.name} for {flops:.3g} FLOPs is less than one {word}")
        return math.exp(size), math.exp(compute - size)

    def optimum_interval(self, flops: float) -> tuple[float, float] | None:
        """95% interval of the optimal N; None without a covariance."""
        if self.covariance is None:
            return None
        total, compute = self.alpha + self.beta, math.log(flops / FLOPS_PER_PARAMETER_TOKEN)
        size = math.log(self.optimum(flops)[0])
        gradient = (
            1 / total,
            -1 / total,
            0.0,
            (1 / self.alpha - size) / total,
            (-1 / self.beta + compute - size) / total,
        )
        width = NORMAL_95 * math.sqrt(_quadratic(gradient, self.covariance))
        return math.exp(size - width), math.exp(size + width)

    def warnings(self, parameters: float, tokens: float) -> list[str]:
        """What lies outside the runs the law was fitted to."""
        found = []
        for word, value, bounds in (("N", parameters, self.parameters), ("D", tokens, self.tokens)):
            if bounds and not bounds[0] <= value <= bounds[1]:
                low, high = bounds
                found.append(
                    f"{word} = {value:.3g} is outside the fitted range {low:.2g} to {high:.2g}: extrapolated"
                )
        return found


def _quadratic(vector: tuple[float, ...], matrix: tuple[tuple[float, ...], ...]) -> float:
    return sum(
        a * b * entry
        for a, row in zip(vector, matrix, strict=True)
        for b, entry in zip(vector, row, strict=True)
    )


_HOFFMANN_PARAMETERS, _HOFFMANN_TOKENS = (70e6, 16.2e9), (5e9, 500e9)
LAWS = {
    law.name: law
    for law in (
        ScalingLaw(
            "besiroglu", 1.8172, 482.01, 2085.43, 0.3478, 0.3658,
            "Besiroglu et al. 2024, arXiv:2404.10102, table 1: a refit of Hoffmann's runs",
            parameters=(5.7e7, 1.62e10), tokens=(8.2e8, 3.2e11),
            standard_errors={"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02},
            covariance=BESIROGLU_COVARIANCE,
        ),
        ScalingLaw(
            "hoffmann", 1.69, 406.4, 410.7, 0.34, 0.28,
            "Hoffmann et al. 2022, arXiv:2203.15556, equation 10, rounded as printed",
            _HOFFMANN_PARAMETERS, _HOFFMANN_TOKENS,
        ),
        ScalingLaw(
            "hoffmann_unrounded", math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186),
            0.33917084, 0.2849083,
            "the same fit unrounded, from the TeX source (quoted by Besiroglu et al. 2024)",
            _HOFFMANN_PARAMETERS, _HOFFMANN_TOKENS,
        ),
        ScalingLaw(
            "muennighoff", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596,
            "Muennighoff et al. 2023, arXiv:2305.16264, appendix A: C4, with repeated epochs",
            parameters=(7e6, 9e9), tokens=(1e8, 9e11),
        ),
    )
}  # fmt: skip

# Muennighoff et al. 2023, appendix A: how slowly repeated tokens and excess parameters lose their worth.
REPEATED_TOKENS_CONSTANT = 15.387756
EXCESS_PARAMETERS_CONSTANT = 5.309743


def effective_tokens(tokens: float, unique_tokens: float | None) -> float:
    """What ``tokens`` in epochs over ``unique_tokens`` are worth in fresh ones (Muennighoff, equation 5)."""
    if unique_tokens is None or tokens <= unique_tokens:
        return tokens
    repetitions = tokens / unique_tokens - 1
    worth = REPEATED_TOKENS_CONSTANT * -math.expm1(-repetitions / REPEATED_TOKENS_CONSTANT)
    return min(tokens, unique_tokens * (1 + worth))  # rounding must not make a repeated token worth more


def effective_parameters(law: ScalingLaw, parameters: float, unique_tokens: float | None) -> float:
    """What ``parameters`` are worth with so few unique tokens (Muennighoff, equation 6).

    From the first epoch on: were it only from the second, the loss would jump where repetition begins.
    """
    if unique_tokens is None:
        return parameters
    enough = optimal_parameters_for(law, unique_tokens)
    if parameters <= enough:
        return parameters
    excess = parameters / enough - 1
    worth = EXCESS_PARAMETERS_CONSTANT * -math.expm1(-excess / EXCESS_PARAMETERS_CONSTANT)
    return min(parameters, enough * (1 + worth))


def optimal_parameters_for(law: ScalingLaw, tokens: float) -> float:
    """N for which ``tokens`` is the optimal D: α A / N^α = β B / D^β at the optimum; at least one."""
    ratio = math.log(law.alpha * law.A / (law.beta * law.B))
    return math.exp(min(max(0.0, (ratio + law.beta * math.log(tokens)) / law.alpha), LARGEST_LOGARITHM))


def predicted_loss(
    law: ScalingLaw, parameters: float, tokens: float, unique_tokens: float | None = None
) -> float:
    """Loss with repeated tokens and excess parameters discounted, as Muennighoff fitted them on C4."""
    return law.loss(
        effective_parameters(law, parameters, unique_tokens), effective_tokens(tokens, unique_tokens)
    )


def predicted_half_width(
    law: ScalingLaw, parameters: float, tokens: float, unique_tokens: float | None = None
) -> float | None:
    """Half of the 95% interval of :func:`predicted_loss`; None without a covariance."""
    return law.half_width(
        effective_parameters(law, parameters, unique_tokens), effective_tokens(tokens, unique_tokens)
    )


def find_law(name: str, custom: dict[str, float | None]) -> ScalingLaw:
    """A published law, or ``custom`` with all five constants.

    Raises:
        PlanError: an unknown name, or constants that are missing or given to a published law.
    """
    given = {key: value for key, value in custom.items() if value is not None}
    if name != "custom":
        if given:
            raise PlanError(f"law: constants ({', '.join(f'law_{key}' for key in given)}) need --law custom")
        return LAWS[name]
    missing = [f"law_{key}" for key in custom if key not in given]
    if missing:
        raise PlanError(f"law: custom needs all five constants; missing {', '.join(missing)}")
    e, a, b, alpha, beta = (float(given[key]) for key in ("e", "a", "b", "alpha", "beta"))
    return ScalingLaw("custom", e, a, b, alpha, beta, "constants given")
