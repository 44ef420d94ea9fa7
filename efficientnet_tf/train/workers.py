"""What processes that train together tell each other, and how one learns that another has ended.

All of them must call these functions, in the same order. Without other processes they do nothing.
"""

import contextlib
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from efficientnet_tf.paths import AnyPath
from efficientnet_tf.train.strategy import worker

_VISIBLE = 30.0  # seconds after which a file that another machine wrote must be there


def exchange(strategy: tf.distribute.Strategy, text: str) -> list[str]:
    """Tells all workers a text, and returns everybody's, in the order of the workers."""
    me = worker(strategy)
    if me.count == 1:
        return [text]
    content = text.encode("utf-8", "surrogateescape")
    lengths = np.zeros(me.count)
    lengths[me.index] = len(content)
    lengths = _total(strategy, lengths).astype(int)
    if not lengths.any():
        return [""] * me.count
    rows = np.zeros((me.count, lengths.max()))
    rows[me.index, : len(content)] = list(content)
    rows = _total(strategy, rows).astype(np.uint8)
    return [
        row[:length].tobytes().decode("utf-8", "surrogateescape")
        for row, length in zip(rows, lengths, strict=True)
    ]


def any_of(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether it is so for any worker; the same answer for all."""
    if worker(strategy).count == 1:
        return flag
    return bool(_total(strategy, np.array([float(flag)]))[0])


def wait(strategy: tf.distribute.Strategy) -> None:
    """Waits until all workers have come here."""
    any_of(strategy, False)


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Has the chief do what is inside, and then the others."""
    chief = worker(strategy).index == 0
    if not chief:
        wait(strategy)
    yield
    if chief:
        wait(strategy)


def check_same(strategy: tf.distribute.Strategy, text: str, name: str) -> None:
    """Raises ValueError, for all workers, where they do not all have the chief's text."""
    texts = exchange(strategy, text)
    others = [str(index) for index, its in enumerate(texts) if its != texts[0]]
    if others:
        raise ValueError(
            f"All workers must have the same {name}. Others than the chief's have worker"
            f" {', '.join(others)} of {len(texts)}."
        )


def check_shared(strategy: tf.distribute.Strategy, path: AnyPath) -> None:
    """Checks that all workers see a file that the chief has written.

    Args:
        strategy: of the workers.
        path: of a text file, which must have the same content for all of them.

    Raises:
        ValueError: some do not, even after a while.
    """
    me = worker(strategy)
    if me.count == 1:
        return
    text = exchange(strategy, path.read_text(encoding="utf-8") if me.index == 0 else "")[0]
    deadline = time.monotonic() + _VISIBLE
    while not (seen := path.exists() and path.read_text(encoding="utf-8") == text):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    problems = exchange(strategy, "" if seen else str(me.index))
    blind = [problem for problem in problems if problem]
    if blind:
        raise ValueError(
            f"Worker {', '.join(blind)} does not see {path.name}, which the chief wrote to"
            f" {path.parent}. The workdir must be a folder that all workers share."
        )


@contextlib.contextmanager
def explained(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Says in words that another worker has ended; otherwise errors pass.

    Raises:
        RuntimeError: another one ended, or cannot be reached any more.
    """
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    try:
        yield
    except (*lost, tf.errors.CancelledError, tf.errors.InternalError) as error:
        me = worker(strategy)
        if me.count == 1 or not (isinstance(error, lost) or "ollective" in str(error)):
            raise
        raise RuntimeError(
            f"Another of the {me.count} workers has ended or cannot be reached: its own log says"
            " why. What was learnt since the last checkpoint is lost; start all workers again, and"
            f" they go on from it. (Worker {me.index}: {_first_line(error)})"
        ) from error


def _first_line(error: tf.errors.OpError) -> str:
    lines = [line for line in str(error).splitlines() if "ollective ops" in line]
    return (lines or [type(error).__name__])[0].strip()[:300]


def _total(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Sums arrays over the workers; float64, in which all that is sent here is exact."""
    replicas = strategy.num_replicas_in_sync // worker(strategy).count  # of each worker

    def of_replica(context):
        first = context.replica_id_in_sync_group % replicas == 0
        return tf.constant(values if first else np.zeros_like(values), tf.float64)

    each = strategy.experimental_distribute_values_from_function(of_replica)
    return strategy.reduce("SUM", each, axis=None).numpy()
