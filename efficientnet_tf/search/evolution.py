"""Which network to try next: any, or regularised evolution (Real et al., arXiv 1802.01548)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from efficientnet_tf.search.space import Choice, Space

_TRIES = 300  # to find one that was not tried before


def random(space: Space, tried: Collection[Choice], rng: np.random.Generator) -> Choice | None:
    """Draws a network that was not tried before; None where none was found."""
    for _ in range(_TRIES):
        choice = space.draw(rng)
        if choice not in tried:
            return choice
    return None


def evolve(
    space: Space,
    history: Sequence[tuple[Choice, float]],
    tried: Collection[Choice],
    rng: np.random.Generator,
    *,
    population: int,
    sample: int,
) -> Choice | None:
    """Algorithm 1 of the paper, from the trials so far alone.

    The first `population` networks are random. Then the best of `sample` networks, drawn with
    replacement from the `population` that ended last, is changed in one property of one stage. So
    it is age that a network dies of, not a low reward. Unlike in the paper, networks that were
    tried before or lie beyond the limits are not tried (again).

    Args:
        space: of the networks.
        history: networks and rewards of the trials that succeeded, in the order in which they
            ended.
        tried: all networks so far, those that failed or are being trained included.
        rng: is drawn from.
        population: networks alive, > 0.
        sample: networks that compete for being the parent, in [1, population].

    Returns:
        The next network; a random one where the parent has no new neighbour, None where none was
        found either.
    """
    if len(history) < population:
        return random(space, tried, rng)
    parent = best_of(history[-population:], sample, rng)
    for _ in range(_TRIES):
        child = space.mutate(parent, rng)
        if child not in tried and space.allows(child):
            return child
    return random(space, tried, rng)


def best_of(alive: Sequence[tuple[Choice, float]], sample: int, rng: np.random.Generator) -> Choice:
    """The best of `sample` members, drawn with replacement."""
    drawn = [alive[int(rng.integers(len(alive)))] for _ in range(sample)]
    return max(drawn, key=lambda member: member[1])[0]
