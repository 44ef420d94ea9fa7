"""The space of networks, the reward, the Pareto front, evolution: against arithmetic by hand."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from efficientnet_tf.arch import VARIANTS, BlockArgs, files
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.scaling import find
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.search import evolution
from efficientnet_tf.search.reward import pareto, reward
from efficientnet_tf.search.space import Limits, Space, Stage, of_parameters, parameters

_BLOCKS = ("r1_k3_s11_e1_i8_o8_c1", "r2_k3_s22_e4_i8_o16_se0.25", "r1_k5_s22_e4_i16_o24_se0.25")
BASE = dataclasses.replace(
    find("efficientnetv2-b0"),
    name="tiny",
    blocks=tuple(BlockArgs.parse(block) for block in _BLOCKS),
    stem_filters=8,
    head_filters=32,
    resolution=32,
    train_resolution=32,
    classes=10,
)


# 24 * 36 * 24 networks.
SMALL = {"layers": (1, 2, 3), "kernels": (3, 5), "expansions": (1, 4)}


def everything(space):
    return list(itertools.product(*space.options))


def all_costs(base, **options):
    space = Space(base, **options)
    return [space.cost(choice) for choice in everything(space)]


class Scripted:
    """A random generator whose numbers are given, each below the bound that is asked for."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def integers(self, bound):
        number = self.numbers.pop(0)
        assert 0 <= number < bound, (number, bound)
        return number


def test_reward_is_the_papers():
    # 0.8 * 2**-0.07 * 0.5**-0.05 = 0.8 * 2**-0.02
    assert reward(0.8, 2.0, 0.5) == pytest.approx(0.8 * math.exp(-0.02 * math.log(2)))
    assert reward(0.8, 1.0, 1.0) == 0.8  # of the base
    assert reward(0.9, 4.0, 1.0, step_exponent=-0.5) == pytest.approx(0.45)
    assert reward(0.9, 1.0, 4.0, params_exponent=-0.5) == pytest.approx(0.45)
    # A network of 1.1 times the time has to be 0.67 % better to be as good.
    assert reward(0.5 * 1.1**0.07, 1.1, 1.0) == pytest.approx(0.5)


def test_pareto_front_is_that_of_brute_force():
    rng = np.random.default_rng(0)
    points = [tuple(row) for row in rng.integers(0, 5, (60, 3))]  # with ties

    def beats(one, other):
        signed = [(-a[0], a[1], a[2]) for a in (one, other)]
        return all(x <= y for x, y in zip(*signed, strict=True)) and signed[0] != signed[1]

    expected = [i for i, p in enumerate(points) if not any(beats(other, p) for other in points)]
    assert 1 < len(expected) < 30
    assert pareto(points) == expected
    assert pareto([]) == []


def test_costs_are_those_of_the_whole_network():
    space = Space(VARIANTS["efficientnet-b4"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        choice = space.draw(rng)
        total = count(space.variant(choice)).total
        assert space.cost(choice) == (total.trainable, total.macs)


def test_options_are_the_papers_around_the_bases_layers():
    space = Space(VARIANTS["efficientnet-b4"])  # scaled repeats 2-4-4-6-6-8-2
    assert [sorted({s.layers for s in stage}) for stage in space.options] == [
        [1, 2, 3, 4], [2, 3, 4, 5, 6], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8], [4, 5, 6, 7, 8],
        [6, 7, 8, 9, 10], [1, 2, 3, 4],
    ]  # fmt: skip
    assert {(s.conv, s.kernel_size, s.expand_ratio) for s in space.options[0]} == set(
        itertools.product(("mbconv", "fused"), (3, 5), (1, 4, 6))
    )
    assert space.size == (12 * 4) ** 2 * (12 * 5) ** 5


def test_a_network_keeps_what_is_not_searched():
    space = Space(BASE)
    choice = (Stage("mbconv", 2, 5, 6), Stage("fused", 1, 3, 4), Stage("mbconv", 1, 3, 1))
    blocks = space.variant(choice).blocks
    assert [block.encode() for block in blocks] == [
        "r2_k5_s11_e6_i8_o8_se0.25",
        "r1_k3_s22_e4_i8_o16_c1",
        "r1_k3_s22_e1_i16_o24_se0.25",
    ]
    assert of_parameters(parameters(choice)) == choice


def test_a_network_in_a_file_is_built_with_the_same_parameters(tmp_path):
    space = Space(BASE)
    choice = (Stage("mbconv", 2, 5, 6), Stage("fused", 1, 3, 4), Stage("mbconv", 1, 3, 1))
    files.write(space.variant(choice), tmp_path / "found.json")
    model = build(str(tmp_path / "found.json"))
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    assert (trainable, count(files.read(tmp_path / "found.json")).total.macs) == space.cost(choice)


def test_drawn_networks_are_within_the_limits():
    smallest = min(all_costs(BASE, **SMALL))[0]
    rng = np.random.default_rng(0)
    for params in (smallest, smallest + 500, smallest * 2):
        space = Space(BASE, limits=Limits(params=params), **SMALL)
        drawn = {space.draw(rng) for _ in range(20)}
        assert all(space.cost(choice)[0] <= params for choice in drawn)
        assert len(drawn) == 1 if params == smallest else len(drawn) > 1


def test_an_impossible_space_tells_what_is_possible():
    costs = all_costs(BASE, **SMALL)
    params, macs = min(cost[0] for cost in costs), min(cost[1] for cost in costs)
    with pytest.raises(
        ValueError, match=f"at most {params - 1:,} parameters.*has {params:,} param"
    ):
        Space(BASE, limits=Limits(params=params - 1), **SMALL)
    with pytest.raises(ValueError, match=f"and {macs:,} multiply-adds"):
        Space(BASE, limits=Limits(macs=macs - 1), **SMALL)
    with pytest.raises(ValueError, match="kernels must be"):
        Space(BASE, kernels=())
    with pytest.raises(ValueError, match="layers must be"):
        Space(BASE, layers=(0, 1))
    with pytest.raises(ValueError, match="convs must be"):
        Space(BASE, convs=("depthwise",))
    with pytest.raises(ValueError, match="params must be >= 1"):
        Limits(params=0)


def test_the_smallest_network_has_the_fewest_of_both():
    for options in ({}, {"convs": ("fused",)}, {"kernels": (5, 3), "expansions": (6, 4)}):
        costs = all_costs(BASE, layers=(2, 1), **options)
        assert min(costs)[1] == min(macs for _, macs in costs)


def test_a_mutation_changes_one_property_of_one_stage():
    space, rng = Space(BASE), np.random.default_rng(0)
    choice = space.draw(rng)
    changed = set()
    for _ in range(300):
        other = space.mutate(choice, rng)
        differing = [
            (place, name)
            for place, (one, two) in enumerate(zip(choice, other, strict=True))
            for name in ("conv", "layers", "kernel_size", "expand_ratio")
            if getattr(one, name) != getattr(two, name)
        ]
        assert len(differing) == 1
        assert other[differing[0][0]] in space.options[differing[0][0]]
        changed.add(differing[0])
    assert len(changed) == 12  # each of four in each of three
    single = Space(BASE, convs=("fused",), layers=(1,), kernels=(3,), expansions=(4,))
    only = single.draw(rng)
    assert single.mutate(only, rng) == only


# One stage with four properties: what `mutate` draws is (place and property, value).
ONE = Space(dataclasses.replace(BASE, blocks=BASE.blocks[:1]), layers=(1, 2, 3))


def network(layers, kernel=3):
    return (Stage("fused", layers, kernel, 1),)


def test_evolution_has_the_papers_population_and_age():
    # Population 3, sample 2. The best of all, 0.9, is dead: three have ended since.
    history = [
        (network(1), 0.9),
        (network(2), 0.2),
        (network(3), 0.5),
        (network(1, 5), 0.4),
    ]
    tried = {choice for choice, _ in history}
    # Draws members 0 and 2 of the last three: rewards 0.2 and 0.4, so 1 layer, kernel 5, is the
    # parent. Of its properties (conv, layers, kernel, expansion) it is layers that changes, to the
    # second of the other values 2 and 3.
    rng = Scripted(0, 2, 1, 1)
    child = evolution.evolve(ONE, history, tried, rng, population=3, sample=2)
    assert child == network(3, 5)
    # With replacement: the same member twice.
    rng = Scripted(0, 0, 2, 0)
    child = evolution.evolve(ONE, history, tried, rng, population=3, sample=2)
    assert child == network(2, 5)
    # The oldest of the population has died when one more has ended.
    older = [*history, (network(2, 5), 0.1)]
    rng = Scripted(0, 0, 2, 0)
    child = evolution.evolve(ONE, older, set(), rng, population=3, sample=2)
    assert child == network(3, 5)


def test_evolution_starts_with_random_networks():
    history = [(network(1), 0.9), (network(2), 0.2)]
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    child = evolution.evolve(ONE, history, set(), rng, population=3, sample=2)
    assert child == ONE.draw(other)


def test_no_network_is_tried_twice():
    history = [(network(1), 0.9), (network(2), 0.2)]
    tried = {choice for choice, _ in history}
    # The child would be network(2), which was tried: the next one is taken.
    rng = Scripted(0, 0, 1, 0, 1, 1)
    assert evolution.evolve(ONE, history, tried, rng, population=2, sample=2) == network(3)
    rng = np.random.default_rng(0)
    assert evolution.random(ONE, set(everything(ONE)), rng) is None
    left = everything(ONE)[7]
    assert evolution.random(ONE, set(everything(ONE)) - {left}, rng) == left


def test_evolution_stays_within_the_limits():
    smallest = min(ONE.cost(choice) for choice in everything(ONE))
    space = Space(ONE.base, layers=(1, 2, 3), limits=Limits(params=smallest[0] + 1500))
    history = [(space.draw(np.random.default_rng(0)), 0.5)]
    for seed in range(10):
        rng = np.random.default_rng(seed)
        child = evolution.evolve(space, history, set(), rng, population=1, sample=1)
        assert space.allows(child)
