"""What makes a network good: one number, or the networks that no other one beats."""

from collections.abc import Sequence

import numpy as np

STEP_EXPONENT = -0.07
PARAMS_EXPONENT = -0.05


def reward(
    accuracy: float,
    step: float,
    params: float,
    step_exponent: float = STEP_EXPONENT,
    params_exponent: float = PARAMS_EXPONENT,
) -> float:
    """A * S**w * P**v (V2 Sec. 3.3).

    The paper does not say what P is counted in, nor what S is normalised by. Here both are the
    network's over the base network's, which a factor for all networks alike does not change: the
    base's reward is its accuracy, and networks of different spaces can be compared.

    >>> round(reward(0.8, step=2.0, params=0.5), 4)
    0.789

    Args:
        accuracy: A, in [0, 1].
        step: S, training-step time over the base network's, > 0.
        params: P, trainable parameters over the base network's, > 0.
        step_exponent: w.
        params_exponent: v.
    """
    return accuracy * step**step_exponent * params**params_exponent


def pareto(points: Sequence[tuple[float, float, float]]) -> list[int]:
    """Indices of the networks that no other one beats.

    One beats another where it is at least as good in everything, and better in something.

    >>> pareto([(0.9, 2.0, 5.0), (0.8, 1.0, 5.0), (0.7, 1.5, 5.0)])
    [0, 1]

    Args:
        points: (accuracy, step time, parameters) of each.
    """
    if not points:
        return []
    costs = np.asarray(points, np.float64) * [-1, 1, 1]  # the smaller the better
    as_good = (costs[:, None] <= costs[None]).all(-1)  # row against column
    better = (costs[:, None] < costs[None]).any(-1)
    return np.flatnonzero(~(as_good & better).any(0)).tolist()
