"""A bounded queue in front of the sessions, which lays waiting requests together.

Requests are merged only when they ask the same outputs of the same signature of the same version,
and their inputs have the same dtypes and shapes behind the batch. Each gets its own rows back. When
a merged run fails, every request in it is run alone: one bad picture is one request's error, and
the index in its message is the one that the request knows.
"""

import collections
import dataclasses
import math
import threading
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import Future

import numpy as np

from efficientnet_tf.serve.errors import ServingError
from efficientnet_tf.serve.metrics import Metrics
from efficientnet_tf.serve.session import Session, Signature


@dataclasses.dataclass(frozen=True)
class Batching:
    """How requests are laid together.

    Attributes:
        max_batch_size: rows of a merged run; 1 merges nothing, which is right for any model. Others
            need a model whose rows do not depend on each other.
        timeout: seconds that a request waits for others while its batch is not full.
        threads: how many runs go on at once.
    """

    max_batch_size: int = 1
    timeout: float = 0.005
    threads: int = 2

    def __post_init__(self):
        if self.max_batch_size < 1 or self.threads < 1 or not 0 <= self.timeout < math.inf:
            raise ValueError(
                "max_batch_size and threads must be at least 1, timeout at least 0."
                f" Received: {self}"
            )


@dataclasses.dataclass(eq=False)
class _Task:
    session: Session
    signature: Signature
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    deadline: float
    key: Hashable  # None: runs alone
    rows: int
    arrival: float = dataclasses.field(default_factory=time.monotonic)
    future: Future = dataclasses.field(default_factory=Future)


class Batcher:
    """Threads that take requests from one queue and run them."""

    def __init__(self, batching: Batching, *, max_queue: int, metrics: Metrics):
        """Starts the threads.

        Args:
            batching: how requests are merged, and the number of threads.
            max_queue: requests that may wait.
            metrics: told the queue's length, the waiting times and the batch sizes.
        """
        self._batching = batching
        self._max_queue = max_queue
        self._metrics = metrics
        self._waiting: collections.deque[_Task] = collections.deque()
        self._open: dict[Hashable, list[_Task]] = {}  # batches that a thread is gathering
        self._changed = threading.Condition()
        self._stopping = False
        self._alone: set[tuple[Session, str]] = set()  # whose outputs were not one row per row
        self._threads = [
            threading.Thread(target=self._work, name=f"serve-run-{i}", daemon=True)
            for i in range(batching.threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        session: Session,
        signature: Signature,
        inputs: Mapping[str, np.ndarray],
        outputs: tuple[str, ...],
        *,
        timeout: float,
    ) -> "Future[dict[str, np.ndarray]]":
        """Queues a request.

        Args:
            session: open until the future is done.
            signature: of that session.
            inputs: that fit the signature.
            outputs: names of those that are wanted.
            timeout: seconds from now, after which nobody waits for the answer.

        Returns:
            The outputs by name, or a ServingError. Cancelling it takes a request out of the queue.

        Raises:
            ServingError: UNAVAILABLE, the queue is full or the server is stopping.
        """
        task = _Task(session, signature, inputs, outputs, time.monotonic() + timeout, None, 1)
        task.key, task.rows = self._key(task)
        with self._changed:
            if self._stopping:
                raise ServingError("UNAVAILABLE", "The server is stopping")
            if len(self._waiting) >= self._max_queue:
                self._metrics.count("serve_rejected_total", reason="queue")
                # The words are those of TensorFlow Serving's shared_batch_scheduler.h.
                raise ServingError(
                    "UNAVAILABLE",
                    "The batch scheduling queue to which this task was submitted is full",
                )
            batch = self._open.get(task.key)
            if batch is not None and self._fits(task, batch):
                batch.append(task)
            else:
                self._waiting.append(task)
            self._metrics.set("serve_queue_length", len(self._waiting))
            self._changed.notify_all()
        return task.future

    def stop(self, grace: float) -> None:
        """Refuses new requests, and returns when those that wait are answered.

        Args:
            grace: seconds, after which the rest is given up.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._changed:
            while self._waiting:
                self._waiting.popleft().future.cancel()

    def forget(self, session: Session) -> None:
        """Drops what is known about a session that is closed."""
        with self._changed:
            self._alone = {known for known in self._alone if known[0] is not session}

    def _key(self, task: _Task) -> tuple[Hashable, int]:
        rows = {array.shape[0] if array.ndim else -1 for array in task.inputs.values()}
        mergeable = (
            self._batching.max_batch_size > 1
            and task.signature.merges
            and (task.session, task.signature.name) not in self._alone
            and len(rows) == 1
            and 0 < max(rows) < self._batching.max_batch_size
        )
        count = max(rows, default=1)
        if not mergeable:
            return None, max(1, count)
        shapes = tuple((n, a.dtype.str, a.shape[1:]) for n, a in sorted(task.inputs.items()))
        return (task.session, task.signature.name, task.outputs, shapes), count

    def _work(self) -> None:
        while batch := self._take():
            now = time.monotonic()
            live = []
            for task in batch:
                if not task.future.set_running_or_notify_cancel():
                    continue
                if now > task.deadline:
                    error = ServingError("DEADLINE_EXCEEDED", "The request waited too long")
                    task.future.set_exception(error)
                    continue
                self._metrics.observe("serve_queue_seconds", now - task.arrival)
                live.append(task)
            if live:
                self._run(live)

    def _take(self) -> list[_Task]:
        """Waits for a request and those that go with it; empty when there will be no more."""
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return []
                self._changed.wait()
            batch = [self._waiting.popleft()]
            if batch[0].key is not None:
                self._gather(batch)
            self._metrics.set("serve_queue_length", len(self._waiting))
            return batch

    def _gather(self, batch: list[_Task]) -> None:
        """Adds to a batch what goes with it, and leaves it open to newcomers for a while."""
        first = batch[0]
        for task in list(self._waiting):
            if self._fits(task, batch):
                self._waiting.remove(task)
                batch.append(task)
        self._open[first.key] = batch
        while not self._stopping and _rows(batch) < self._batching.max_batch_size:
            left = first.arrival + self._batching.timeout - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        # Another thread may have opened a batch of the same key, for what did not fit into this.
        if self._open.get(first.key) is batch:
            del self._open[first.key]

    def _fits(self, task: _Task, batch: list[_Task]) -> bool:
        rows = _rows(batch) + task.rows
        return task.key == batch[0].key and rows <= self._batching.max_batch_size

    def _run(self, batch: list[_Task]) -> None:
        """Answers every request of a batch, whatever happens."""
        answers = self._merged(batch) if len(batch) > 1 else None
        if answers is not None:
            for task, answer in zip(batch, answers, strict=True):
                task.future.set_result(answer)
            return
        for task in batch:
            try:
                task.future.set_result(self._run_one(task))
            except ServingError as error:
                task.future.set_exception(error)
            except Exception as error:  # a defect must not end the thread, or leave a client alone
                wrapped = ServingError("INTERNAL", f"{type(error).__name__}: {error}")
                task.future.set_exception(wrapped)

    def _run_one(self, task: _Task) -> dict[str, np.ndarray]:
        timeout = max(0.001, task.deadline - time.monotonic())
        self._metrics.observe("serve_batch_rows", task.rows)
        return task.session.run(task.signature, task.inputs, task.outputs, timeout=timeout)

    def _merged(self, batch: list[_Task]) -> list[dict[str, np.ndarray]] | None:
        """The answers of one run for all; None when they have to be run one by one."""
        first = batch[0]
        total = _rows(batch)
        try:
            inputs = {
                name: np.concatenate([task.inputs[name] for task in batch]) for name in first.inputs
            }
            timeout = max(0.001, max(task.deadline for task in batch) - time.monotonic())
            outputs = first.session.run(first.signature, inputs, first.outputs, timeout=timeout)
        except Exception:
            return None
        if any(array.ndim == 0 or array.shape[0] != total for array in outputs.values()):
            with self._changed:
                self._alone.add((first.session, first.signature.name))
            return None
        self._metrics.observe("serve_batch_rows", total)
        ends = np.cumsum([task.rows for task in batch])
        return [
            {name: array[end - task.rows : end] for name, array in outputs.items()}
            for task, end in zip(batch, ends, strict=True)
        ]


def _rows(batch: list[_Task]) -> int:
    return sum(task.rows for task in batch)
