from __future__ import annotations

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.methods.quadrature import RULES, Rule, quadrature

ALL = pytest.mark.parametrize("rule", RULES)
STEPS = pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 50])


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10])
def test_gauss_integrates_polynomials_exactly_up_to_its_degree_and_not_beyond(steps: int) -> None:
    rule = quadrature("gauss", steps)
    for degree in range(2 * steps):
        assert float(rule.weights @ rule.points**degree) == pytest.approx(1 / (degree + 1), rel=1e-13)
    if steps < 5:  # with more steps the error is below what float64 resolves
        assert abs(float(rule.weights @ rule.points ** (2 * steps)) - 1 / (2 * steps + 1)) > 1e-7


def test_gauss_integrates_a_random_polynomial_exactly(rng: np.random.Generator) -> None:
    polynomial = np.polynomial.Polynomial(rng.normal(size=12))
    antiderivative = polynomial.integ()
    rule = quadrature("gauss", 6)
    assert float(rule.weights @ polynomial(rule.points)) == pytest.approx(antiderivative(1) - antiderivative(0))


@STEPS
def test_riemann_is_the_mean_over_one_grid_point_more_than_there_are_steps(steps: int) -> None:
    rule = quadrature("riemann", steps)
    assert len(rule) == steps + 1
    np.testing.assert_allclose(rule.points, [k / steps for k in range(steps + 1)], rtol=0, atol=1e-15)
    values = np.exp(rule.points)
    assert float(rule.weights @ values) == pytest.approx(float(values.mean()), rel=1e-14)


@STEPS
def test_midpoint_is_the_mean_over_the_middles_of_equal_intervals(steps: int) -> None:
    rule = quadrature("midpoint", steps)
    assert len(rule) == steps
    np.testing.assert_allclose(rule.points, [(2 * k + 1) / (2 * steps) for k in range(steps)], rtol=0, atol=1e-15)
    np.testing.assert_allclose(rule.weights, 1 / steps, rtol=1e-15)


@ALL
@STEPS
def test_points_ascend_in_the_unit_interval_symmetrically_and_positive_weights_sum_to_one(
    rule: Rule, steps: int
) -> None:
    found = quadrature(rule, steps)
    assert found.points.dtype == found.weights.dtype == np.float64
    assert found.points.shape == found.weights.shape == (len(found),)
    assert np.all(np.diff(found.points) > 0)
    assert found.points[0] >= 0
    assert found.points[-1] <= 1
    assert np.all(found.weights > 0)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-14)
    np.testing.assert_allclose(found.points + found.points[::-1], 1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(found.weights, found.weights[::-1], rtol=1e-12)


@ALL
def test_every_rule_converges_to_the_integral(rule: Rule) -> None:
    found = quadrature(rule, 200)
    assert float(found.weights @ np.exp(found.points)) == pytest.approx(np.e - 1, rel=2e-3)


@ALL
@pytest.mark.parametrize("steps", [0, -1])
def test_an_integral_without_a_step_is_refused(rule: Rule, steps: int) -> None:
    with pytest.raises(UsageError, match=f"at least one step, not {steps}"):
        quadrature(rule, steps)


def test_an_unknown_rule_is_refused_and_the_nearest_is_named() -> None:
    with pytest.raises(UsageError, match=r"no quadrature 'rieman'; did you mean riemann\?"):
        quadrature("rieman", 3)  # type: ignore[arg-type]


@ALL
@STEPS
def test_the_end_of_the_interval_and_what_is_before_it_are_the_whole_sum(rule: Rule, steps: int) -> None:
    found = quadrature(rule, steps)
    before = found.before_end
    assert found.reaches_end == (rule == "riemann")
    assert bool((before.points < 1).all())
    at_end = found.weights[-1] * np.exp(1.0) if found.reaches_end else 0.0
    assert float(before.weights @ np.exp(before.points)) + at_end == pytest.approx(
        float(found.weights @ np.exp(found.points)), rel=1e-14
    )
