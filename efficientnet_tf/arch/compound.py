"""Scaling a network by depth, width, resolution or all three, up to a budget (V1 Sec. 3)."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

from efficientnet_tf.arch.baselines import BASELINES, Baseline
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.scaling import find, round_repeats
from efficientnet_tf.arch.tables import Variant

How = Literal["compound", "depth", "width", "resolution"]
Base = TypeVar("Base", Variant, Baseline)

MIN_RESOLUTION = 32  # pixels: the networks' total stride
_LEAST, _MOST = 1e-4, 400.0  # factors beyond which nothing is looked for
_STEP = 1e-9  # of phi
_LATENCY_STEP = 0.02  # of phi: 1.4 % of the multiply-adds
_EARLY = 0.6  # exponent of depth in the early stages; see `scaled`


def compound_scale(
    base: str | Base, phi: float, alpha: float = 1.2, beta: float = 1.1, gamma: float = 1.15
) -> Base:
    """Scales depth by alpha**phi, width by beta**phi and resolution by gamma**phi (V1 Eq. 3).

    Multiply-adds grow about (alpha * beta**2 * gamma**2)**phi. The released B1 to B7 have
    coefficients that were chosen by hand near this rule; `scaled` takes those.

    >>> network = compound_scale("efficientnet-b0", 1)
    >>> network.depth, round(network.width, 3), network.resolution
    (1.2, 1.1, 258)

    Args:
        base: name or path of a variant, a `Variant`, a `Baseline` or its name.
        phi: how many times the cost doubles, about; below 0 it shrinks.
        alpha: of depth, at least 1.
        beta: of width, at least 1.
        gamma: of resolution, at least 1.

    Returns:
        The scaled network, whose name tells its coefficients.

    Raises:
        ValueError: unknown name, a coefficient below 1, or a phi beyond what can be counted.
    """
    _check_coefficients(alpha, beta, gamma)
    if not math.log(_LEAST) <= phi * math.log(max(alpha, beta, gamma)) <= math.log(_MOST):
        raise ValueError(
            f"phi must scale each dimension by {_LEAST:g} to {_MOST:g} times. Received:"
            f" phi={phi!r} with coefficients {alpha:g}, {beta:g}, {gamma:g}"
        )
    return scaled(base, depth=alpha**phi, width=beta**phi, resolution=gamma**phi)


def scaled(
    base: str | Base,
    *,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
    cap_resolution: int | None = None,
    later_stages: bool = False,
) -> Base:
    """Multiplies a network's depth, width and resolution.

    Blocks and filters are rounded as in the published networks (`scaling.round_repeats`,
    `scaling.round_filters`) when the network is resolved.

    Args:
        base: as for `compound_scale`.
        depth: multiplier of the base's.
        width: multiplier of the base's.
        resolution: multiplier of the base's, in pixels at least 32 and rounded.
        cap_resolution: pixels that are not exceeded.
        later_stages: whether the last third of the stages grows by `depth` and the others only by
            `depth**0.6`: "gradually add more layers to later stages" (V2 Sec. 3.3), which names no
            numbers. This exponent makes the repeats of V2-L from those of V2-S.

    Returns:
        The scaled network. With `later_stages` its depth is in its blocks' repeats.
    """
    network = find_base(base)
    size = max(MIN_RESOLUTION, round(network.resolution * resolution))
    size = size if cap_resolution is None else min(size, cap_resolution)
    changes: dict[str, Any] = {
        "name": f"{network.name}-d{depth:.3g}-w{width:.3g}-r{size}",
        "width": network.width * width,
        "depth": network.depth * depth,
    }
    if later_stages:
        first = len(network.blocks) - math.ceil(len(network.blocks) / 3)
        growth = [
            depth ** (1 if stage >= first else _EARLY) for stage in range(len(network.blocks))
        ]
        rows = [
            dataclasses.replace(row, repeats=_repeats(network, stage, growth[stage]))
            for stage, row in enumerate(network.blocks)
        ]
        changes |= {"blocks": tuple(rows), "depth": 1.0}
    return dataclasses.replace(_resized(network, size), **changes)


def scale(
    base: str | Base,
    *,
    params: int | None = None,
    macs: int | None = None,
    memory: int | None = None,
    latency: float | None = None,
    measure: Callable[[Base], float] | None = None,
    resolution: int | None = None,
    how: How = "compound",
    alpha: float = 1.2,
    beta: float = 1.1,
    gamma: float = 1.15,
    cap_resolution: int | None = None,
    later_stages: bool = False,
) -> Base:
    """Finds the largest network inside all budgets that are given (V1 Eq. 2).

    >>> phone = scale("efficientnet-b0", macs=120_000_000)
    >>> round(count(phone).total.macs / 1e6), phone.resolution
    (117, 160)

    Args:
        base: as for `compound_scale`.
        params: most trainable parameters, with the base's number of classes.
        macs: most multiply-adds for one picture.
        memory: most bytes of weights and activations, in float32, while one picture is classified.
        latency: most seconds, as `measure` finds them.
        measure: the seconds that a network takes, such as `efficientnet_tf.measure.latency`; called
            about ten times.
        resolution: pixels, which are then not scaled.
        how: what grows.
        alpha: of depth; see `compound_scale`.
        beta: of width.
        gamma: of resolution.
        cap_resolution: pixels that are not exceeded; what is left goes into depth and width.
        later_stages: see `scaled`.

    Returns:
        The network. One step more of any of its dimensions along the way would break a budget.

    Raises:
        ValueError: not even the smallest network fits: its cost is in the message; or the budgets
            do not limit what grows.
    """
    start = find_base(base)
    _check_coefficients(alpha, beta, gamma)
    given = {"params": params, "macs": macs, "memory": memory, "latency": latency}
    limits = {name: limit for name, limit in given.items() if limit is not None}
    _check_request(limits, measure, resolution, how, cap_resolution)
    if later_stages and how not in ("compound", "depth"):
        raise ValueError(f"later_stages needs how=compound or depth. Received: how={how!r}")
    if resolution is not None:
        start = _resized(start, resolution)
        gamma = 1.0
    rates = {
        name: rate if how in ("compound", name) else 1.0
        for name, rate in (("depth", alpha), ("width", beta), ("resolution", gamma))
    }
    growing = [math.log(rate) for rate in rates.values() if rate > 1]
    if not growing:
        raise ValueError(f"Nothing grows with these coefficients: {rates}")
    bounds = math.log(_LEAST) / min(growing), math.log(_MOST) / max(growing)

    def at(phi: float) -> Base:
        factors = {name: max(_LEAST, rate**phi) for name, rate in rates.items()}
        return scaled(start, **factors, cap_resolution=cap_resolution, later_stages=later_stages)

    counted = [name for name in limits if name != "latency"]
    limit = math.inf
    if counted:
        limit = _last(lambda phi: _broken(at(phi), counted, limits), at, _STEP, bounds, limit)
    if measure is not None:
        measured = functools.lru_cache(maxsize=None)(measure)

        def slow(phi: float) -> str:
            seconds = measured(at(phi))
            most = limits["latency"]
            return "" if seconds <= most else f"latency={seconds:.3g} (limit {most:.3g})"

        limit = _last(slow, at, _LATENCY_STEP, bounds, limit)
    return at(limit)


def costs(network: Variant | Baseline) -> dict[str, int]:
    """What the budgets of `scale` limit, by their names; see there."""
    cost = count(network)
    total = cost.total
    memory = 4 * total.params + cost.peak_memory()
    return {"params": total.trainable, "macs": total.macs, "memory": memory}


def find_base(base: str | Variant | Baseline) -> Any:
    """Returns what can be scaled: the baseline or the variant of a name, or what is given."""
    if isinstance(base, Baseline):
        return base
    if isinstance(base, str) and base in BASELINES:
        return BASELINES[base]
    return find(base)


def _last(
    broken: Callable[[float], str],
    at: Callable[[float], Base],
    step: float,
    bounds: tuple[float, float],
    limit: float,
) -> float:
    """Finds the largest phi, up to a limit, at which no budget is broken.

    Args:
        broken: says which budgets a phi breaks, and how.
        at: the network of a phi.
        step: accuracy of phi.
        bounds: of phi, beyond which nothing is looked for.
        limit: of phi.

    Raises:
        ValueError: the smallest network breaks a budget, or the largest does not.
    """
    if limit < math.inf and not broken(limit):
        return limit
    lowest, highest = bounds
    low, high = min(0.0, limit - 1), min(1.0, limit)
    if broken(low):
        while broken(low):
            if low <= lowest:
                raise ValueError(
                    f"No network that small: the smallest, {at(low).name}, has {broken(low)}."
                )
            low, high = max(lowest, 2 * low - 1), low
    else:
        while not broken(high):
            if high >= highest:
                if at(high) == at(high / 2):  # a capped resolution, for example
                    return high
                raise ValueError(
                    "The budgets do not limit what grows: give another one, or cap_resolution."
                )
            low, high = high, min(highest, limit, 2 * high)
    while high - low > step:
        middle = (low + high) / 2
        low, high = (low, middle) if broken(middle) else (middle, high)
    return low


def _broken(network: Variant | Baseline, names: list[str], limits: dict[str, float]) -> str:
    found = costs(network)
    return ", ".join(
        f"{name}={found[name]:,} (limit {limits[name]:,.0f})"
        for name in names
        if found[name] > limits[name]
    )


def _resized(base: Base, size: int) -> Base:
    if isinstance(base, Variant):
        train = max(MIN_RESOLUTION, round(size * base.train_resolution / base.resolution))
        return dataclasses.replace(base, resolution=size, train_resolution=train)
    return dataclasses.replace(base, resolution=size)


def _repeats(base: Variant | Baseline, stage: int, growth: float) -> int:
    outer = stage in (0, len(base.blocks) - 1)
    if isinstance(base, Variant) and outer and not base.scale_outer_repeats:
        return base.blocks[stage].repeats
    return round_repeats(base.blocks[stage].repeats, base.depth * growth)


def _check_coefficients(alpha: float, beta: float, gamma: float) -> None:
    if not all(1 <= rate < math.inf for rate in (alpha, beta, gamma)):
        raise ValueError(
            "alpha, beta and gamma must be at least 1, and finite. Received:"
            f" {alpha}, {beta}, {gamma}"
        )


def _check_request(limits, measure, resolution, how, cap_resolution) -> None:
    if not limits:
        raise ValueError("scale needs a budget: params, macs, memory or latency.")
    for name, limit in limits.items():
        if not limit > 0:
            raise ValueError(f"{name} must be > 0. Received: {name}={limit!r}")
    if ("latency" in limits) != (measure is not None):
        raise ValueError(
            "latency and measure belong together: seconds, and a function that gives a network's,"
            " such as efficientnet_tf.measure.latency."
        )
    if how not in get_args(How):
        raise ValueError(f"how must be one of {get_args(How)}. Received: how={how!r}")
    for name, size in (("resolution", resolution), ("cap_resolution", cap_resolution)):
        if size is not None and size < MIN_RESOLUTION:
            raise ValueError(f"{name} must be at least {MIN_RESOLUTION}. Received: {name}={size}")
    if resolution is not None and (how == "resolution" or cap_resolution is not None):
        raise ValueError(
            'resolution is fixed: it goes neither with how="resolution" nor with cap_resolution.'
        )
