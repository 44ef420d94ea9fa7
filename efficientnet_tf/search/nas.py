"""Training-aware search of a network (V2 Sec. 3.3)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from absl import logging

from efficientnet_tf import paths, writing
from efficientnet_tf.arch import Variant, files
from efficientnet_tf.config import Config
from efficientnet_tf.search import evolution, reward, timing
from efficientnet_tf.search import study as study_lib
from efficientnet_tf.search import trial as trial_lib
from efficientnet_tf.search.space import Choice, Space
from efficientnet_tf.search.trial import Trial
from efficientnet_tf.train import workdir

TRIALS = "trials.jsonl"
BEST = "best.json"
_DATABASE = "study.db"


@dataclasses.dataclass(frozen=True)
class Search:
    """How networks are searched.

    Attributes:
        method: "evolution" (see `evolution.evolve`) or "random".
        trials: of the study, at which it ends, those that others have begun included; None for no
            limit.
        minutes: of all trials together, after which none begins; None for no limit.
        population: networks alive in "evolution".
        sample: of them, that compete for being the parent.
        step_exponent: w of the reward.
        params_exponent: v of the reward.
        seeds: of each network's trainings, whose mean accuracy counts.
        seed: of the choices.
    """

    method: Literal["evolution", "random"] = "evolution"
    trials: int | None = None
    minutes: float | None = None
    population: int = 16
    sample: int = 4
    step_exponent: float = reward.STEP_EXPONENT
    params_exponent: float = reward.PARAMS_EXPONENT
    seeds: tuple[int, ...] = (0,)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("evolution", "random"):
            raise ValueError(
                f'method must be "evolution" or "random". Received: method={self.method!r}'
            )
        if self.trials is None and self.minutes is None:
            raise ValueError("A search needs an end: give trials, minutes or both.")
        for name in ("trials", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"{name} must be > 0 and finite, or None. Received: {name}={value!r}"
                )
        for name in ("step_exponent", "params_exponent"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} must be finite. Received: {name}={value!r}")
        if not 1 <= self.sample <= self.population:
            raise ValueError(
                "sample must lie in [1, population]. Received:"
                f" sample={self.sample}, population={self.population}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must be one or more different ones. Received: seeds={self.seeds!r}"
            )


@dataclasses.dataclass(frozen=True)
class Found:
    """One network of a study.

    Attributes:
        number: of its trial.
        choice: its stages.
        variant: itself.
        trial: what came of it.
        reward: nan where the trial failed.
        worker: that trained it.
    """

    number: int
    choice: Choice
    variant: Variant
    trial: Trial
    reward: float
    worker: str


def search(
    config: Config,
    space: Space,
    asked: Search,
    folder: str | os.PathLike,
    *,
    source,
    strategy: tf.distribute.Strategy | None = None,
    storage: str | None = None,
    name: str = "nas",
    tell: Callable[[str], None] = logging.info,
) -> list[Found]:
    """Searches, or goes on with a search, until its end.

    The folder gets trials.jsonl (a line for each trial that ended, whoever trained it), best.json
    (the network with the highest reward, as `arch.files` reads it) and trials/ (a folder for each
    trial of this process, with its variant.json). All are rewritten whole after every trial.

    Args:
        config: of the short trainings, of which `model` names the base.
        space: of the networks, over `trial.base_of(config, ...)`.
        asked: how.
        folder: to write to; one process only.
        source: the pictures, from `trial.opened`.
        strategy: where to train; None is one device.
        storage: of the study, see `study.begin`; None for a file in the folder.
        name: of the study in the storage.
        tell: takes a line before and after each trial.

    Returns:
        The study's networks, in the order in which their trials ended.

    Raises:
        BlockingIOError: a search is going on in the folder.
        ValueError: the study was begun with other settings.
        RuntimeError: all trials failed, or none has ended.
        ImportError: Optuna is missing.
        Interrupted: SIGTERM came; the search is saved.
    """
    study_lib.require_optuna()
    folder = paths.local(folder, "The folder of a search")
    strategy = strategy or tf.distribute.get_strategy()
    writing.check_writable(folder)
    with workdir.locked(folder):
        study = study_lib.begin(
            storage or f"sqlite:///{(folder / _DATABASE).absolute()}",
            name,
            _settings(config, space, asked),
        )
        worker = study_lib.worker_of(folder)
        found = _found(study, space)
        base = None
        while True:
            trial = next(iter(study_lib.unfinished(study, worker)), None)
            is_new = trial is None
            if trial is None:
                if _is_over(asked, study, found):
                    break
                choice = _next(study, space, asked, found, worker)
                if choice is None:
                    logging.warning("No network was found that was not tried before.")
                    break
                trial = study_lib.start(study, space, choice, worker)
            if _is_too_many(asked, study, trial, is_new):
                study_lib.give_up(study, trial)
                continue
            if base is None:
                base = timing.stepper(trial_lib.settings(config, space.base, 0), source, strategy)
            choice = study_lib.choice_of(trial)
            tell(f"Trial {trial.number}: {', '.join(map(str, choice))}")
            result = trial_lib.run(
                space.variant(choice, f"nas-{trial.number}"),
                config,
                folder / "trials" / f"{trial.number:04d}",
                seeds=asked.seeds,
                source=source,
                strategy=strategy,
                base=base,
            )
            value = None if result.failed else _reward(result, space, asked)
            study_lib.end(study, trial, dataclasses.asdict(result), value)
            tell(f"Trial {trial.number}: {_told(result, value)}")
            found = _found(study, space)
            _write(folder, found)
        _write(folder, found)
    if not found:
        raise RuntimeError("No trial has ended yet: others are training all that were asked for.")
    if not any(one.reward == one.reward for one in found):
        reasons = {one.trial.failed for one in found}
        raise RuntimeError(f"All {len(found)} trials failed: {'; '.join(sorted(reasons))}")
    return found


def _told(result: Trial, value: float | None) -> str:
    if result.failed:
        return f"failed: {result.failed}"
    return (
        f"accuracy {result.accuracy:.2%}, {result.step:.2f} of the base's step,"
        f" {result.params:,} parameters, reward {value:.4f}, {result.seconds:.0f} s"
    )


def _reward(result: Trial, space: Space, asked: Search) -> float:
    exponents = asked.step_exponent, asked.params_exponent
    params = result.params / space.params_of_base
    return reward.reward(result.accuracy, result.step, params, *exponents)


def _next(study, space: Space, asked: Search, found: Sequence[Found], worker: str):
    """The network to try next; another one on every worker, the same one on the same."""
    tried = study_lib.tried(study)
    digest = int(hashlib.sha256(worker.encode()).hexdigest()[:8], 16)
    rng = np.random.default_rng((asked.seed, len(study.get_trials(deepcopy=False)), digest))
    if asked.method == "random":
        return evolution.random(space, tried, rng)
    history = [(one.choice, one.reward) for one in found if not one.trial.failed]
    return evolution.evolve(
        space, history, tried, rng, population=asked.population, sample=asked.sample
    )


def _is_too_many(asked: Search, study, trial, is_new: bool) -> bool:
    """Whether another worker, at the same moment, began the same network or the last trial."""
    earlier = study_lib.begun(study, trial)
    if is_new and asked.trials is not None and len(earlier) >= asked.trials:
        return True
    return study_lib.choice_of(trial) in map(study_lib.choice_of, earlier)


def _is_over(asked: Search, study, found: Sequence[Found]) -> bool:
    if asked.trials is not None and len(study_lib.begun(study)) >= asked.trials:
        return True
    seconds = sum(one.trial.seconds for one in found)
    return asked.minutes is not None and seconds >= 60 * asked.minutes


def _found(study, space: Space) -> list[Found]:
    networks = []
    for trial in study_lib.ended(study):
        choice, result = study_lib.choice_of(trial), study_lib.result_of(trial)
        worker = result.pop("worker")
        result["accuracies"] = tuple(result["accuracies"])
        networks.append(
            Found(
                number=trial.number,
                choice=choice,
                variant=space.variant(choice, f"nas-{trial.number}"),
                trial=Trial(**result),
                reward=math.nan if trial.value is None else trial.value,
                worker=worker,
            )
        )
    return networks


def _write(folder: Path, found: Sequence[Found]) -> None:
    workdir.write_text(folder / TRIALS, "".join(f"{json.dumps(line(one))}\n" for one in found))
    good = [one for one in found if not one.trial.failed]
    if good:
        files.write(best(good).variant, folder / BEST)


def best(found: Sequence[Found]) -> Found:
    """The network of the highest reward, of those whose trials did not fail."""
    return max((one for one in found if not one.trial.failed), key=lambda one: one.reward)


def line(one: Found) -> dict[str, Any]:
    """The plain values of a network's line in trials.jsonl."""
    trial = one.trial
    return {
        "trial": one.number,
        "state": "failed" if trial.failed else "done",
        "stages": [dataclasses.asdict(stage) for stage in one.choice],
        "reward": None if trial.failed else one.reward,
        "accuracy": None if trial.failed else trial.accuracy,
        **dataclasses.asdict(trial),
        "worker": one.worker,
    }


def _settings(config: Config, space: Space, asked: Search) -> Mapping[str, Any]:
    """What all who share a study must agree on; where the pictures lie is each one's own."""
    how = dataclasses.asdict(asked)
    for name in ("trials", "minutes"):
        del how[name]
    return {
        **how,
        **trial_lib.shared(config),
        "base": files.to_dict(space.base),
        "space": [[str(stage) for stage in options] for options in space.options],
        "limits": dataclasses.asdict(space.limits),
    }
