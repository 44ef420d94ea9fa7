"""The study of a search, kept by Optuna: what was asked, and every trial from when it begins.

Several processes and machines can share one: each trial is written in one transaction with its
network and its worker, and is that worker's until it ends. One that was killed finds its own trial
again when it is started anew.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efficientnet_tf.search.settings import changes, plain
from efficientnet_tf.search.space import Choice, Space, of_parameters, parameters
from efficientnet_tf.train import workdir

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_SETTINGS = "settings"
_WORKER = "worker"
_RESULT = "result"
_JOURNAL = ".log"
_WORKER_FILE = "worker.txt"


def require_optuna():
    """Returns the module; ImportError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ImportError(
            'Studies are kept by Optuna, which is not installed: pip install "efficientnet_tf'
            '[search]"'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def begin(storage: str, name: str, settings: Mapping[str, Any]) -> Study:
    """Opens a study, or makes it where it is missing.

    Args:
        storage: a database as SQLAlchemy names it ("sqlite:///FILE", "mysql://…"), or the path of a
            journal that ends in ".log", which also network file systems can hold.
        name: of the study in it.
        settings: what is searched, plain values: the same for all who share the study.

    Raises:
        ValueError: the study was begun with other settings, or the storage cannot be opened.
        ImportError: Optuna is missing.
    """
    optuna = require_optuna()
    try:
        if storage.endswith(_JOURNAL) and "://" not in storage:
            from optuna.storages import journal

            kept = optuna.storages.JournalStorage(journal.JournalFileBackend(storage))
        else:
            kept = storage
        study = optuna.create_study(
            storage=kept, study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # of Optuna, of SQLAlchemy, of the database's driver
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"The study's storage {storage!r} cannot be opened: {reason[0] if reason else error!r}."
            ' Expected a path that ends in ".log", or a database such as sqlite:///FILE.'
        ) from error
    settings = plain(settings)
    saved = study.user_attrs.get(_SETTINGS)
    if saved is None:
        study.set_user_attr(_SETTINGS, settings)
    elif changed := changes(saved, settings):
        raise ValueError(
            f"The study {name!r} was begun with other settings: {'; '.join(changed.values())}."
            " Give those to go on with it, or choose another workdir, or another storage or study."
        )
    return study


def start(study: Study, space: Space, choice: Choice, worker: str) -> FrozenTrial:
    """Writes that a worker has begun a trial of a network."""
    optuna = require_optuna()
    values = parameters(choice)
    columns = [parameters(tuple(each)) for each in _columns(space)]
    distributions = {
        name: optuna.distributions.CategoricalDistribution(
            list(dict.fromkeys(column[name] for column in columns))
        )
        for name in values
    }
    study.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=values,
            distributions=distributions,
            user_attrs={_WORKER: worker},
        )
    )
    return unfinished(study, worker)[-1]


def unfinished(study: Study, worker: str) -> list[FrozenTrial]:
    """Trials that a worker has begun and not ended."""
    running = require_optuna().trial.TrialState.RUNNING
    trials = study.get_trials(deepcopy=False, states=(running,))
    return [trial for trial in trials if trial.user_attrs.get(_WORKER) == worker]


def end(study: Study, trial: FrozenTrial, result: Mapping[str, Any], reward: float | None) -> None:
    """Writes what came of a trial.

    Args:
        study: of the trial.
        trial: from `start` or `unfinished`.
        result: plain values.
        reward: None where it failed.
    """
    optuna = require_optuna()
    optuna.trial.Trial(study, trial._trial_id).set_user_attr(_RESULT, dict(result))
    if reward is None:
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    else:
        study.tell(trial.number, reward)


def give_up(study: Study, trial: FrozenTrial) -> None:
    """Ends a trial that is not to be trained; it does not count."""
    study.tell(trial.number, state=require_optuna().trial.TrialState.PRUNED)


def begun(study: Study, before: FrozenTrial | None = None) -> list[FrozenTrial]:
    """Trials of all workers, ended or not, but for those that were given up.

    Args:
        study: that they belong to.
        before: a trial, for those that were begun earlier; None for all. Storages number trials in
            the order in which they were written, so that workers agree about what is earlier.
    """
    given_up = require_optuna().trial.TrialState.PRUNED
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state != given_up and (before is None or trial.number < before.number)
    ]


def ended(study: Study) -> list[FrozenTrial]:
    """Trials of all workers that ended, in the order in which they did; also those that failed."""
    states = require_optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False, states=(states.COMPLETE, states.FAIL))
    return sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number))


def tried(study: Study) -> set[Choice]:
    """Networks of all trials, also of those that have not ended."""
    return {of_parameters(trial.params) for trial in study.get_trials(deepcopy=False)}


def choice_of(trial: FrozenTrial) -> Choice:
    """The network of a trial."""
    return of_parameters(trial.params)


def result_of(trial: FrozenTrial) -> dict[str, Any]:
    """What `end` was given, and the worker."""
    return {**trial.user_attrs.get(_RESULT, {}), _WORKER: trial.user_attrs.get(_WORKER, "")}


def worker_of(folder: str | os.PathLike) -> str:
    """Names the process of a folder: no other one has the folder.

    The name is kept there, so that the worker is the same one where the folder has been moved, or
    the machine has another name, as a container that was started anew.

    Args:
        folder: that this process has locked.
    """
    path = Path(folder) / _WORKER_FILE
    if not path.exists():
        workdir.write_text(path, f"{socket.gethostname()}:{os.path.realpath(folder)}\n")
    return path.read_text(encoding="utf-8").rstrip("\n")


def _columns(space: Space):
    """Choices that together hold every value of every stage."""
    for index in range(max(map(len, space.options))):
        yield [options[index % len(options)] for options in space.options]
