"""V2's search space: what each stage of a network may be made of."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from efficientnet_tf.arch import Variant
from efficientnet_tf.arch.blocks import Conv
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.scaling import resolve

KERNELS = (3, 5)
EXPANSIONS = (1, 4, 6)
CONVS: tuple[Conv, ...] = ("mbconv", "fused")
_DRAWS = 1000  # of whole networks, before they are put together stage by stage


@dataclasses.dataclass(frozen=True, order=True)
class Stage:
    """What is chosen for one stage.

    Attributes:
        conv: kind of the blocks.
        layers: blocks.
        kernel_size: of their depthwise or fused convolution.
        expand_ratio: inner filters over input filters.
    """

    conv: Conv
    layers: int
    kernel_size: int
    expand_ratio: int

    def __str__(self) -> str:
        kind = "MB" if self.conv == "mbconv" else "F"
        return f"{self.layers}×{kind}{self.expand_ratio} k{self.kernel_size}"


Choice = tuple[Stage, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a network may cost at most; None for no limit.

    Attributes:
        params: trainable parameters.
        macs: multiply-adds for one picture.
    """

    params: int | None = None
    macs: int | None = None

    def __post_init__(self) -> None:
        for name in ("params", "macs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1 or None. Received: {name}={value!r}")

    def allow(self, params: int, macs: int) -> bool:
        """Whether a network of this cost may be."""
        return not (
            (self.params is not None and params > self.params)
            or (self.macs is not None and macs > self.macs)
        )


def check_options(
    convs: Sequence[str],
    layers: Sequence[int] | None,
    kernels: Sequence[int],
    expansions: Sequence[int],
) -> None:
    """Refuses what no stage can be made of; arguments are those of `Space`.

    Raises:
        ValueError: says what is possible.
    """
    for name, values in {"kernels": kernels, "expansions": expansions, "layers": layers}.items():
        if values is not None and (not values or min(values) < 1):
            raise ValueError(f"{name} must be integers >= 1. Received: {name}={values!r}")
    if not convs or not set(convs) <= set(CONVS):
        raise ValueError(f"convs must be some of {CONVS}. Received: convs={tuple(convs)!r}")


class Space:
    """The networks over a base, and what each costs.

    Filters, strides, width, stem and head are the base's. Stages of MBConv have the squeeze-excite
    of the base's MBConv stages, fused ones have none, as in all released networks.

    Args:
        base: whose `resolution` and `classes` the costs are counted with.
        convs: kinds of blocks.
        layers: numbers of blocks for every stage; None for the base's number (after scaling), and
            up to two more or less.
        kernels: sizes.
        expansions: inner filters over input filters.
        limits: what a network may cost.

    Raises:
        ValueError: the space has no network, or none within the limits; says what is possible.
    """

    def __init__(
        self,
        base: Variant,
        *,
        convs: Sequence[Conv] = CONVS,
        layers: Sequence[int] | None = None,
        kernels: Sequence[int] = KERNELS,
        expansions: Sequence[int] = EXPANSIONS,
        limits: Limits | None = None,
    ):
        check_options(convs, layers, kernels, expansions)
        if not {stage.conv for stage in base.blocks} <= set(CONVS):
            raise ValueError(
                f"The base must be made of MBConv and Fused-MBConv. {base.name} has other blocks."
            )
        self.base, self.limits = base, limits or Limits()
        repeats = [0] * len(base.blocks)
        for block in resolve(base).blocks:
            repeats[block.stage - 1] += 1
        self.options: tuple[tuple[Stage, ...], ...] = tuple(
            tuple(
                Stage(conv, number, kernel, expansion)
                for conv, number, kernel, expansion in itertools.product(
                    dict.fromkeys(convs),
                    dict.fromkeys(layers or range(max(1, own - 2), own + 3)),
                    dict.fromkeys(kernels),
                    dict.fromkeys(expansions),
                )
            )
            for own in repeats
        )
        self._rest, self._costs = _costs(self)
        self._smallest = self._smallest_rests()
        self._check_possible()

    @property
    def size(self) -> int:
        """Networks in the space, those beyond the limits included."""
        size = 1
        for options in self.options:
            size *= len(options)
        return size

    @property
    def params_of_base(self) -> int:
        """Trainable parameters of the base."""
        return count(self.base).total.trainable

    def variant(self, choice: Choice, name: str = "found") -> Variant:
        """Makes the network of a choice, whose layers are not scaled any more."""
        squeeze = max(stage.se_ratio for stage in self.base.blocks)
        blocks = tuple(
            dataclasses.replace(
                args,
                conv=stage.conv,
                repeats=stage.layers,
                kernel_size=stage.kernel_size,
                expand_ratio=stage.expand_ratio,
                se_ratio=squeeze if stage.conv == "mbconv" else 0.0,
            )
            for args, stage in zip(self.base.blocks, choice, strict=True)
        )
        return dataclasses.replace(self.base, name=name, depth=1.0, blocks=blocks)

    def cost(self, choice: Choice) -> tuple[int, int]:
        """Trainable parameters and multiply-adds of a network."""
        parts = [costs[stage] for costs, stage in zip(self._costs, choice, strict=True)]
        params, macs = self._rest
        return params + sum(part[0] for part in parts), macs + sum(part[1] for part in parts)

    def allows(self, choice: Choice) -> bool:
        """Whether a network lies within the limits."""
        return self.limits.allow(*self.cost(choice))

    def draw(self, rng: np.random.Generator) -> Choice:
        """Draws a network within the limits: all alike, unless few of the space are within them.

        Then each stage is drawn from what leaves enough for the smallest stages after it.
        """
        for _ in range(_DRAWS):
            choice = tuple(_pick(rng, options) for options in self.options)
            if self.allows(choice):
                return choice
        stages: list[Stage] = []
        spent = self._rest
        for place, options in enumerate(self.options):
            possible = [
                stage
                for stage in options
                if self._completes(_sum(spent, self._costs[place][stage]), place + 1)
            ]
            stages.append(_pick(rng, possible))
            spent = _sum(spent, self._costs[place][stages[-1]])
        return tuple(stages)

    def mutate(self, choice: Choice, rng: np.random.Generator) -> Choice:
        """Changes one property of one stage to another value, all alike, limits or not.

        The choice itself comes back where nothing else can be chosen.
        """
        changes = [
            (place, name, values)
            for place, options in enumerate(self.options)
            for name in ("conv", "layers", "kernel_size", "expand_ratio")
            if len(values := list(dict.fromkeys(getattr(stage, name) for stage in options))) > 1
        ]
        if not changes:
            return choice
        place, name, values = _pick(rng, changes)
        other = _pick(rng, [value for value in values if value != getattr(choice[place], name)])
        changed = dataclasses.replace(choice[place], **{name: other})
        return (*choice[:place], changed, *choice[place + 1 :])

    def _completes(self, spent: tuple[int, int], place: int) -> bool:
        return self.limits.allow(*_sum(spent, self._smallest[place]))

    def _smallest_rests(self) -> list[tuple[int, int]]:
        """For each stage, the least that it and all after it cost.

        The option with the fewest parameters has the fewest multiply-adds too: MBConv, the fewest
        layers, the smallest kernel and expansion.
        """
        rests = [(0, 0)]
        for costs in reversed(self._costs):
            rests.insert(0, _sum(min(costs.values()), rests[0]))
        return rests

    def _check_possible(self) -> None:
        if self._completes(self._rest, 0):
            return
        params, macs = _sum(self._rest, self._smallest[0])
        raise ValueError(
            f"No network over {self.base.name} has at most {_told(self.limits.params)} parameters"
            f" and {_told(self.limits.macs)} multiply-adds at {self.base.resolution} px. The"
            f" smallest has {params:,} parameters and {macs:,} multiply-adds. Raise the limits,"
            " take a smaller base or smaller pictures, or allow fewer layers or smaller expansions."
        )


def _costs(space: Space) -> tuple[tuple[int, int], list[dict[Stage, tuple[int, int]]]]:
    """Costs of stem and head, and of each option of each stage.

    They add up, since filters and strides, and so what a stage reads, are the base's.
    """
    costs: list[dict[Stage, tuple[int, int]]] = [{} for _ in space.options]
    for index in range(max(map(len, space.options))):
        choice = tuple(options[index % len(options)] for options in space.options)
        stages = count(space.variant(choice)).stages
        for place, stage in enumerate(choice):
            cost = stages[f"stage{place + 1}"]
            costs[place][stage] = cost.trainable, cost.macs
    ends = [stages["stem"], stages["head"]]
    return (sum(end.trainable for end in ends), sum(end.macs for end in ends)), costs


def _sum(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _pick(rng: np.random.Generator, values: Sequence):
    return values[int(rng.integers(len(values)))]


def _told(limit: int | None) -> str:
    return "any number of" if limit is None else f"{limit:,}"


def parameters(choice: Choice) -> dict[str, int | str]:
    """Names and values of a choice, as a study stores them."""
    return {
        f"stage{place}_{name}": value
        for place, stage in enumerate(choice, 1)
        for name, value in dataclasses.asdict(stage).items()
    }


def of_parameters(values: dict) -> Choice:
    """The choice of what `parameters` returned."""
    names = [field.name for field in dataclasses.fields(Stage)]
    count_ = 1 + max(int(key.partition("_")[0].removeprefix("stage")) for key in values)
    return tuple(
        Stage(**{name: values[f"stage{place}_{name}"] for name in names})
        for place in range(1, count_)
    )
