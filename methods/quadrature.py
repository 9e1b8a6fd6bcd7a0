"""Integrals over [0, 1] as weighted sums: the points and weights that every path method shares.

Plain functions of a number of steps, in float64; nothing here knows what is integrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, suggest

__all__ = ["RULES", "Quadrature", "Rule", "quadrature"]

Rule = Literal["gauss", "riemann", "midpoint"]
RULES = ("gauss", "riemann", "midpoint")


@dataclass(frozen=True)
class Quadrature:
    """∫₀¹ f(a) da ≈ Σ_k weights[k] · f(points[k]).

    Attributes:
        points: ascending, in [0, 1], (K,).
        weights: their sum is 1, but for a part of a rule, (K,).
    """

    points: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.points)

    @property
    def closed(self) -> bool:
        """The two ends of the interval are among the points."""
        return bool(self.points[0] == 0 and self.reaches_end)

    @property
    def reaches_end(self) -> bool:
        """The upper end of the interval is among the points, the last one."""
        return bool(self.points[-1] == 1)

    @property
    def before_end(self) -> Quadrature:
        """The points and weights below 1; the weights of a sum that lacks the last one where `reaches_end`."""
        count = len(self) - self.reaches_end
        return Quadrature(self.points[:count], self.weights[:count])


def quadrature(rule: Rule, steps: int) -> Quadrature:
    """A rule with its points and weights.

    - ``"gauss"``: Gauss–Legendre with ``steps`` points, exact for polynomials of degree 2·steps − 1.
    - ``"riemann"``: the mean over the ``steps + 1`` points 0, 1/steps … 1, as in the published code of IIA and DIX.
    - ``"midpoint"``: the mean over the ``steps`` midpoints of equal intervals.

    Raises:
        UsageError: no such rule, or fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"an integral takes at least one step, not {steps}")
    if rule == "gauss":
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        return Quadrature((nodes + 1) / 2, weights / 2)
    if rule == "riemann":
        return Quadrature(np.linspace(0, 1, steps + 1), np.full(steps + 1, 1 / (steps + 1)))
    if rule == "midpoint":
        return Quadrature((np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps))
    raise UsageError(f"there is no quadrature '{rule}'; {suggest(str(rule), RULES)}")
