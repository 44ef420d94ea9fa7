"""The queue: what is merged, that answers and errors are not crossed, and what is turned away."""

import concurrent.futures
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from efficientnet_tf.serve.batching import Batcher, Batching
from efficientnet_tf.serve.errors import ServingError
from efficientnet_tf.serve.metrics import Metrics
from efficientnet_tf.serve.session import PREDICT, Signature, Spec


class Doubler:
    """Stands for a session: doubles its input, notes the runs, and can be held up."""

    def __init__(self):
        self.runs = []
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Semaphore(0)

    def run(self, signature, inputs, outputs, *, timeout):
        self.runs.append(len(inputs["x"]))
        self.started.release()
        assert self.gate.wait(30)
        bad = np.flatnonzero(inputs["x"][:, 0] < 0)
        if bad.size:
            raise ServingError("INVALID_ARGUMENT", f"row {bad[0]}")
        rows = 2 * inputs["x"]
        return {"y": rows if signature.name == "rows" else rows.sum(0), "more": rows + 1}


def _signature(name="rows", first=-1):
    spec = Spec("t:0", tf.float32, (first, 2))
    return Signature(name, PREDICT, {"x": spec}, {"y": spec, "more": spec})


def _rows(*values):
    return {"x": np.float32([[value, value] for value in values])}


@pytest.fixture
def make():
    made = []

    def make(**settings):
        max_queue = settings.pop("max_queue", 100)
        batcher = Batcher(Batching(**settings), max_queue=max_queue, metrics=Metrics())
        made.append(batcher)
        return batcher

    yield make
    for batcher in made:
        batcher.stop(5)


def _hold(batcher, session):
    """Occupies the only thread, so that what is submitted next waits."""
    session.gate.clear()
    future = batcher.submit(session, _signature(), _rows(0), ("y",), timeout=60)
    assert session.started.acquire(timeout=30)
    return future


def test_waiting_requests_are_merged_and_get_their_own_rows(make):
    session, batcher = Doubler(), make(max_batch_size=6, timeout=0.0, threads=1)
    held = _hold(batcher, session)
    values = [(1, 2), (3,), (4, 5, 6), (7,)]
    futures = [batcher.submit(session, _signature(), _rows(*v), ("y",), timeout=60) for v in values]
    session.gate.set()
    for future, value in zip(futures, values, strict=True):
        np.testing.assert_array_equal(future.result(30)["y"], 2 * _rows(*value)["x"])
    held.result(30)
    assert session.runs == [1, 6, 1]  # 2 + 1 + 3 rows fill a batch of 6


def test_only_the_same_outputs_shapes_and_signatures_are_merged(make):
    session, other = Doubler(), Doubler()
    batcher = make(max_batch_size=16, timeout=0.0, threads=1)
    _hold(batcher, session)
    wide = {"x": np.float32([[1, 1, 1]])}
    requests = [
        (session, _signature(), _rows(1), ("y",)),
        (session, _signature(), _rows(1), ("more",)),
        (session, _signature("other"), _rows(1), ("more",)),
        (session, _signature(), wide, ("y",)),
        (session, _signature(first=1), _rows(1), ("y",)),  # takes one row at a time
        (other, _signature(), _rows(1), ("y",)),
    ]
    futures = [batcher.submit(*request, timeout=60) for request in requests]
    session.gate.set()
    concurrent.futures.wait(futures, timeout=30)
    assert session.runs == [1] * 6
    assert other.runs == [1]
    assert futures[3].result()["y"].shape == (1, 3)


def test_an_error_is_told_only_to_the_request_that_made_it(make):
    session, batcher = Doubler(), make(max_batch_size=16, timeout=0.0, threads=1)
    _hold(batcher, session)
    futures = [
        batcher.submit(session, _signature(), _rows(*v), ("y",), timeout=60)
        for v in [(1, 2), (3, -1), (4,)]
    ]
    session.gate.set()
    np.testing.assert_array_equal(futures[0].result(30)["y"][:, 0], [2, 4])
    np.testing.assert_array_equal(futures[2].result(30)["y"][:, 0], [8])
    with pytest.raises(ServingError, match="row 1"):  # its own row, not that of the batch
        futures[1].result(30)


def test_outputs_that_have_no_row_for_each_row_are_not_merged_again(make):
    session, batcher = Doubler(), make(max_batch_size=16, timeout=0.0, threads=1)
    signature = _signature("sums")
    for runs in ([1, 3, 2, 1], [1, 2, 1]):
        _hold(batcher, session)
        futures = [
            batcher.submit(session, signature, _rows(*v), ("y",), timeout=60)
            for v in [(1, 2), (3,)]
        ]
        session.gate.set()
        assert [future.result(30)["y"].tolist() for future in futures] == [[6, 6], [6, 6]]
        assert session.runs == runs
        session.runs.clear()
        while session.started.acquire(blocking=False):
            pass


def test_a_batch_waits_for_others_until_it_is_full(make):
    session, batcher = Doubler(), make(max_batch_size=3, timeout=30.0, threads=2)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        submit = lambda v: batcher.submit(session, _signature(), _rows(v), ("y",), timeout=60)  # noqa: E731
        answers = [f.result(20)["y"][0, 0] for f in pool.map(submit, (1, 2, 3))]
    assert answers == [2, 4, 6]
    assert session.runs == [3]


def test_a_full_queue_refuses(make):
    session, batcher = Doubler(), make(threads=1, max_queue=2)
    _hold(batcher, session)
    futures = [batcher.submit(session, _signature(), _rows(v), ("y",), timeout=60) for v in (1, 2)]
    with pytest.raises(ServingError, match="queue to which this task was submitted is full") as e:
        batcher.submit(session, _signature(), _rows(3), ("y",), timeout=60)
    assert e.value.code == "UNAVAILABLE"
    session.gate.set()
    assert [future.result(30)["y"][0, 0] for future in futures] == [2, 4]


def test_what_nobody_waits_for_any_more_is_not_run(make):
    session, batcher = Doubler(), make(threads=1)
    _hold(batcher, session)
    late = batcher.submit(session, _signature(), _rows(1), ("y",), timeout=0.01)
    dropped = batcher.submit(session, _signature(), _rows(2), ("y",), timeout=60)
    assert dropped.cancel()
    time.sleep(0.05)
    session.gate.set()
    with pytest.raises(ServingError) as caught:
        late.result(30)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    batcher.stop(30)
    assert session.runs == [1]


def test_stopping_answers_what_waits_and_refuses_the_rest(make):
    session, batcher = Doubler(), make(max_batch_size=4, timeout=60.0, threads=1)
    future = batcher.submit(session, _signature(), _rows(5), ("y",), timeout=60)
    batcher.stop(30)
    assert future.result(0)["y"][0, 0] == 10
    with pytest.raises(ServingError, match="stopping"):
        batcher.submit(session, _signature(), _rows(1), ("y",), timeout=60)


def test_many_threads_get_their_own_answers(make):
    session, batcher = Doubler(), make(max_batch_size=8, timeout=0.002, threads=3, max_queue=1000)

    def ask(seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            rows = {"x": random.uniform(1, 9, (random.integers(1, 6), 2)).astype(np.float32)}
            bad = random.random() < 0.1
            if bad:
                rows["x"][-1] = -1
            future = batcher.submit(session, _signature(), rows, ("y", "more"), timeout=60)
            if bad:
                with pytest.raises(ServingError, match=f"row {len(rows['x']) - 1}$"):
                    future.result(30)
                continue
            np.testing.assert_array_equal(future.result(30)["y"], 2 * rows["x"])
            np.testing.assert_array_equal(future.result(30)["more"], 2 * rows["x"] + 1)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    assert max(session.runs) > 5  # no request has more than 5 rows: some were merged


def test_settings_are_checked():
    for wrong in ({"max_batch_size": 0}, {"threads": 0}, {"timeout": -1.0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            Batching(**wrong)
