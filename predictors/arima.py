"""ARIMA(5,1,5), one model per expert, as the paper runs it (Cong et al., 2024, arXiv:2404.16914).

statsforecast's ARIMA, fitted by CSS-ML (conditional sum of squares, then maximum likelihood): with d >= 1 its
plain CSS silently forecasts 0. At 0.2 to 0.6 s a series and origin it runs on a seeded sample of series; the
rest is NaN, so compare it with others on the same sample (`sampled.OnSample`). The paper states neither
sample nor history length.
"""

from collections.abc import Sequence

from predictors.statistical import Statistical


class Arima(Statistical):
    """ARIMA of a seeded sample of series; each share is clipped to [0, 1], since a sample has no simplex.

    Where no fit is found (seen in up to half the series below 50 steps, about 1 in 30 at 200, none of 60 from
    1,000 on) the series gets ARIMA(0,1,0), its last value, and a RuntimeWarning counts them.

    Args:
        order: (p, d, q).
        num_series: series to fit, spread over the layers.
        seed: of the sample; the same as in `OnSample` for a comparison in pairs.
        max_history: fit on the last so many steps only; None for all.
    """

    def __init__(
        self,
        order: Sequence[int] = (5, 1, 5),
        num_series: int = 8,
        seed: int = 0,
        max_history: int | None = None,
    ) -> None:
        if len(order) != 3 or min(order) < 0:
            raise ValueError(f"order must be three non-negative integers (p, d, q), got {list(order)}")
        p, d, q = order
        super().__init__("ARIMA", num_series, seed, max_history, {"order": (p, d, q), "method": "CSS-ML"})
        self.name = f"ARIMA{(p, d, q)}"
