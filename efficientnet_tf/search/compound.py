"""How depth, width and resolution are scaled together, found on the user's data (V1 Sec. 3.3).

Step 1 trains the base scaled once, by every alpha, beta and gamma of a grid that about doubles the
multiply-adds. Step 2 keeps the best of them, scales further, and compares with scaling a single
dimension to the same multiply-adds (V1 Fig. 8).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from absl import logging

from efficientnet_tf import paths, writing
from efficientnet_tf.arch import Variant, files, resolve
from efficientnet_tf.arch.complexity import count
from efficientnet_tf.arch.compound import compound_scale, scale
from efficientnet_tf.config import Config
from efficientnet_tf.search import trial as trial_lib
from efficientnet_tf.search.settings import changes, plain
from efficientnet_tf.search.trial import Trial
from efficientnet_tf.train import workdir

TRIALS = "trials.jsonl"
SETTINGS = "search.json"
BEST = "best.json"
HOW = ("depth", "width", "resolution", "compound")
_FACTOR = 2.0  # of the multiply-adds, for each step of phi


@dataclasses.dataclass(frozen=True)
class Search:
    """What is scaled by how much.

    Attributes:
        step: of the grid over alpha, beta and gamma.
        tolerance: largest distance of alpha * beta**2 * gamma**2 from 2.
        slack: how many times 2 the multiply-adds of the grid's networks may grow at most: real
            channels and layers are whole numbers, and more so in small networks.
        phis: of step 2, rising.
        seeds: of each network's trainings, whose mean accuracy counts.
    """

    step: float = 0.1
    tolerance: float = 0.1
    slack: float = 1.1
    phis: tuple[float, ...] = (1.0, 2.0)
    seeds: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ValueError(f"step must lie in (0, 1]. Received: step={self.step!r}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(
                f"tolerance must lie in [0, 1). Received: tolerance={self.tolerance!r}"
            )
        if not self.slack >= 1:
            raise ValueError(f"slack must be >= 1. Received: slack={self.slack!r}")
        finite = all(0 < phi < math.inf for phi in self.phis)
        if not self.phis or not finite or sorted(set(self.phis)) != list(self.phis):
            raise ValueError(
                "phis must be one or more rising numbers > 0, and finite. Received:"
                f" phis={self.phis!r}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must be one or more different ones. Received: seeds={self.seeds!r}"
            )


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One network, scaled from the base.

    Attributes:
        name: "base", "grid 1.2 1.1 1.15", "phi 2 depth", ...
        coefficients: alpha, beta and gamma; None where a single dimension was scaled.
        variant: the network.
        trial: what came of it.
        macs_ratio: multiply-adds over the base's.
        note: e.g. that it is the same network as another one.
    """

    name: str
    coefficients: tuple[float, float, float] | None
    variant: Variant
    trial: Trial
    macs_ratio: float
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a compound search found.

    Attributes:
        grid: networks of step 1 that succeeded, the best first; then those that failed.
        coefficients: alpha, beta and gamma of the best one.
        scaled: "depth", "width", "resolution", "compound" to the networks of step 2, the base
            first.
    """

    grid: tuple[Scaled, ...]
    coefficients: tuple[float, float, float]
    scaled: dict[str, list[Scaled]]


def coefficients(step: float, tolerance: float) -> list[tuple[float, float, float]]:
    """The grid: alpha, beta, gamma >= 1 whose alpha * beta**2 * gamma**2 is about 2.

    >>> (1.2, 1.1, 1.15) in coefficients(0.05, 0.1)
    True

    Args:
        step: between two values.
        tolerance: largest distance from 2.

    Raises:
        ValueError: there are none.
    """
    highest = _FACTOR + tolerance

    def values(power: int) -> list[float]:
        steps = int((highest ** (1 / power) - 1) / step + 1e-9)
        return [round(1 + index * step, 10) for index in range(steps + 1)]

    found = [
        (alpha, beta, gamma)
        for alpha, beta, gamma in itertools.product(values(1), values(2), values(2))
        if abs(alpha * beta**2 * gamma**2 - _FACTOR) <= tolerance + 1e-9
    ]
    if not found:
        raise ValueError(
            f"No alpha, beta, gamma in steps of {step:g} have alpha * beta**2 * gamma**2 within"
            f" {tolerance:g} of 2. Take smaller steps or a larger tolerance."
        )
    return found


def search(
    config: Config,
    asked: Search,
    folder: str | os.PathLike,
    *,
    source,
    strategy: tf.distribute.Strategy | None = None,
    tell: Callable[[str], None] = logging.info,
) -> Result:
    """Searches, or goes on with a search.

    The folder gets trials.jsonl (a line for each trial that ended), best.json (the base scaled by
    the coefficients to the largest phi, as `arch.files` reads it) and trials/ (a folder for each).

    Args:
        config: of the short trainings, of which `model` names the base. Pictures have the size of
            each network: `data.train_size` must be None.
        asked: what.
        folder: to write to; one process only.
        source: the pictures, from `trial.opened`.
        strategy: where to train; None is one device.
        tell: takes a line about what is to be done, and after each trial.

    Raises:
        BlockingIOError: a search is going on in the folder.
        FileExistsError: the folder holds a search with other settings.
        ValueError: the grid is empty, or none of its networks is within the budget.
        RuntimeError: all trials of the grid failed, or that of the base.
        Interrupted: SIGTERM came; the search is saved.
    """
    if config.data.train_size is not None:
        raise ValueError(
            "Networks are trained at the resolution that they are scaled to. Received:"
            f" data.train_size={config.data.train_size}, which must be none"
        )
    base = trial_lib.base_of(config, source.num_classes)
    candidates = _candidates(base, asked, tell)
    folder = paths.local(folder, "The folder of a search")
    writing.check_writable(folder)
    with workdir.locked(folder):
        _check_settings(folder, config, base, asked)
        trials = _Trials(config, asked, folder, base, source, strategy, tell)
        trained = trials.run("base", None, base)
        if trained.trial.failed:
            raise RuntimeError(f"The base network failed: {trained.trial.failed}")
        grid = [trials.run(_name(which), which, variant) for which, variant in candidates]
        good = sorted(
            (one for one in grid if not one.trial.failed), key=lambda one: -one.trial.accuracy
        )
        if not good:
            reasons = sorted({one.trial.failed for one in grid})
            raise RuntimeError(f"All networks of the grid failed: {'; '.join(reasons)}")
        best = good[0].coefficients
        tell("The best are alpha {:g}, beta {:g}, gamma {:g}.".format(*best))
        scaled = _step_two(trials, trained, base, best, asked, tell)
        files.write(compound_scale(base, asked.phis[-1], *best), folder / BEST)
    failed = [one for one in grid if one.trial.failed]
    return Result((*good, *failed), best, scaled)


def _candidates(
    base: Variant, asked: Search, tell
) -> list[tuple[tuple[float, float, float], Variant]]:
    """The grid's networks that keep to the budget; each network once."""
    budget = _FACTOR * asked.slack * count(base).total.macs
    grid = coefficients(asked.step, asked.tolerance)
    networks = {which: compound_scale(base, 1, *which) for which in grid}
    macs = {which: count(variant).total.macs for which, variant in networks.items()}
    kept, seen = [], set()
    for which, variant in networks.items():
        if macs[which] <= budget and (key := _key(variant)) not in seen:
            seen.add(key)
            kept.append((which, variant))
    tell(
        f"{len(grid)} alpha, beta, gamma give {len(kept)} different networks of at most"
        f" {budget / 1e6:.2f} M multiply-adds."
    )
    if not kept:
        raise ValueError(
            f"None of the grid's {len(grid)} networks has at most {budget / 1e6:.2f} M"
            f" multiply-adds, {_FACTOR * asked.slack:g} times those of {base.name} at"
            f" {base.resolution} px; the smallest has {min(macs.values()) / 1e6:.2f} M. Raise the"
            " slack, or take a base with more filters and layers, which scale in finer steps."
        )
    return kept


def _step_two(trials, trained: Scaled, base: Variant, best, asked: Search, tell):
    scaled: dict[str, list[Scaled]] = {how: [trained] for how in HOW}
    for phi, how in itertools.product(asked.phis, HOW):
        variant, which = compound_scale(base, phi, *best), best
        if how != "compound":
            macs = count(variant).total.macs  # about 2**phi times the base's
            try:
                variant, which = scale(base, macs=macs, how=how), None
            except ValueError as error:
                tell(f"phi {phi:g}, {how} alone: {error}")
                continue
        one = trials.run(f"phi {phi:g} {how}", which, variant)
        if not one.trial.failed:
            scaled[how].append(one)
    return scaled


class _Trials:
    """The trials of a search, of which each network is trained once."""

    def __init__(self, config, asked: Search, folder: Path, base: Variant, source, strategy, tell):
        self._config, self._asked, self._folder = config, asked, folder
        self._source, self._strategy, self._tell = source, strategy, tell
        self._base_macs = count(base).total.macs
        self._ended: dict[object, Scaled] = {}
        # Of the trials that ended before, too: the file never has fewer lines than it had.
        self._lines = _lines(folder / TRIALS)

    def run(self, name: str, which: tuple[float, ...] | None, variant: Variant) -> Scaled:
        before = self._ended.get(_key(variant))
        if before:
            one = dataclasses.replace(
                before, name=name, coefficients=which, note=f"the same as {before.name}"
            )
        else:
            model = dataclasses.replace(self._config.model, image_size=variant.resolution)
            result = trial_lib.run(
                variant,
                dataclasses.replace(self._config, model=model),
                self._folder / "trials" / name.replace(" ", "-"),
                seeds=self._asked.seeds,
                source=self._source,
                strategy=self._strategy,
            )
            one = Scaled(name, which, variant, result, result.macs / self._base_macs)
            self._ended[_key(variant)] = one
            told = result.failed or f"{result.accuracy:.2%}, {one.macs_ratio:.2f} x the base"
            self._tell(f"{name}: {told}, {result.seconds:.0f} s")
        text = json.dumps(line(one))
        if self._lines.get(name) != text:
            self._lines[name] = text
            workdir.write_text(
                self._folder / TRIALS, "".join(f"{each}\n" for each in self._lines.values())
            )
        return one


def line(one: Scaled) -> dict[str, Any]:
    """The plain values of a network's line in trials.jsonl."""
    trial = one.trial
    return {
        "trial": one.name,
        "state": "failed" if trial.failed else "done",
        "coefficients": one.coefficients,
        "width": one.variant.width,
        "depth": one.variant.depth,
        "resolution": one.variant.resolution,
        "accuracy": None if trial.failed else trial.accuracy,
        "macs_ratio": one.macs_ratio,
        "note": one.note,
        **dataclasses.asdict(trial),
    }


def _lines(path: Path) -> dict[str, str]:
    """The lines of trials.jsonl by the names of their trials; none where it is missing."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {json.loads(text)["trial"]: text for text in texts}


def _key(variant: Variant) -> object:
    """What tells two networks apart, however they were scaled."""
    network = resolve(variant)
    return network.stem_filters, network.blocks, network.head_filters, variant.resolution


def _name(which: Sequence[float]) -> str:
    return "grid " + " ".join(f"{value:g}" for value in which)


def _check_settings(folder: Path, config: Config, base: Variant, asked: Search) -> None:
    """Writes what is searched, or compares it with what was begun."""
    settings = {
        **dataclasses.asdict(asked),
        **trial_lib.shared(config),
        "base": files.to_dict(base),
    }
    settings = plain(settings)
    path = folder / SETTINGS
    if not path.exists():
        workdir.write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    changed = changes(saved, settings)
    # More of step 2 can be asked for later: the trials that ended are not run again.
    if set(changed) - {"phis"}:
        raise FileExistsError(
            f"{folder} holds a search with other settings: {'; '.join(changed.values())}. Give"
            " those to go on with it, or choose another workdir."
        )
    workdir.write_text(path, json.dumps(settings, indent=2) + "\n")
