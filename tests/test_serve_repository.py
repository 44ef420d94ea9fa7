"""Versions come, go and break while requests are answered."""

import os
import shutil
import threading

import numpy as np
import pytest
import serve_models
import tensorflow as tf

from efficientnet_tf.serve import session as session_lib
from efficientnet_tf.serve.errors import ServingError
from efficientnet_tf.serve.metrics import Metrics
from efficientnet_tf.serve.repository import Repository
from efficientnet_tf.serve.session import Session

X = np.float32([[1, 2, 3]])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Version 1, from which the tests copy."""
    path = serve_models.write(tmp_path_factory.mktemp("first"), 1)
    serve_models.remember(path)
    return path


@pytest.fixture
def make(tmp_path, first):
    made = []

    def make(**settings):
        repository = Repository(tmp_path, name="tiny", metrics=Metrics(), **settings)
        made.append(repository)
        return repository

    yield make
    for repository in made:
        repository.stop()


def _answer(repository, version=None, label=None):
    """Version that answers, by its answer."""
    with repository.use(version, label) as loaded:
        signature = loaded.session.find("")
        answer = loaded.session.run(signature, {"x": X}, ("y",))["y"]
        np.testing.assert_array_equal(answer, serve_models.expected(X, loaded.version))
        return loaded.version


def _states(repository):
    return {status.version: status.state for status in repository.statuses()}


def test_the_newest_version_is_served_and_the_old_one_unloaded(make, tmp_path):
    repository = make()
    repository.poll()  # an empty folder is no error: an export may come
    with pytest.raises(ServingError, match=r"Could not find any versions of model tiny"):
        repository.statuses()
    serve_models.write(tmp_path, 1)
    repository.poll()
    assert _answer(repository) == 1
    serve_models.write(tmp_path, 3)
    (tmp_path / ".writing-4").mkdir()
    (tmp_path / "notes.txt").write_text("not a version")
    repository.poll()
    assert _answer(repository) == 3
    assert _states(repository) == {3: "AVAILABLE", 1: "END"}
    with pytest.raises(ServingError, match=r"Servable not found for request: Specific\(tiny, 1\)"):
        repository.acquire(1)


def test_a_broken_version_is_refused_and_the_old_one_serves_on(make, tmp_path):
    repository = make()
    serve_models.write(tmp_path, 1)
    broken = serve_models.write(tmp_path, 2)
    data = broken / "variables" / "variables.data-00000-of-00001"
    content = data.read_bytes()
    data.write_bytes(content[: len(content) // 2])  # copying is not finished
    repository.poll()
    assert _answer(repository) == 1
    bad, good = repository.statuses()
    assert (bad.version, bad.state, good.state) == (2, "END", "AVAILABLE")
    assert str(broken) in bad.error.message
    repository.poll()
    assert repository.statuses()[0] is bad  # it was not tried again
    data.write_bytes(content)
    repository.poll()
    assert _answer(repository) == 2
    assert _states(repository) == {2: "AVAILABLE", 1: "END"}


@pytest.mark.parametrize("damage", ["no graph", "rubbish", "cut graph", "no tag"])
def test_every_kind_of_damage_is_refused(make, tmp_path, damage):
    repository = make()
    path = serve_models.write(tmp_path, 7)
    file = path / "saved_model.pb"
    content = file.read_bytes()
    if damage == "no graph":
        file.unlink()
    elif damage == "rubbish":
        file.write_bytes(b"\xff" * 1000)
    elif damage == "cut graph":
        file.write_bytes(content[: len(content) // 2])
    else:
        proto = serve_models.saved_model_pb2.SavedModel.FromString(content)
        proto.meta_graphs[0].meta_info_def.tags[:] = ["train"]
        file.write_bytes(proto.SerializeToString())
    repository.poll()
    (status,) = repository.statuses()
    assert (status.version, status.state) == (7, "END")
    assert status.error.code != "OK"
    assert status.error.message
    with pytest.raises(ServingError, match="Servable not found"):
        repository.acquire()


def test_a_removed_version_unloads_after_its_requests(make, tmp_path):
    repository = make()
    serve_models.write(tmp_path, 1)
    repository.poll()
    loaded = repository.acquire()
    shutil.rmtree(tmp_path / "1")
    repository.poll()
    assert _states(repository) == {1: "UNLOADING"}
    with pytest.raises(ServingError, match=r"Latest\(tiny\)"):
        repository.acquire()
    answer = loaded.session.run(loaded.session.find(""), {"x": X}, ("y",))["y"]
    np.testing.assert_array_equal(answer, serve_models.expected(X, 1))
    loaded.release()
    assert _states(repository) == {1: "END"}
    with pytest.raises(ServingError):  # it is closed
        loaded.session.run(loaded.session.find(""), {"x": X}, ("y",))


def test_a_folder_that_vanishes_for_a_moment_unloads_nothing(make, tmp_path):
    repository = make()
    serve_models.write(tmp_path, 1)
    repository.poll()
    away = tmp_path.with_name(tmp_path.name + "-away")
    os.rename(tmp_path, away)
    repository.poll()
    assert _answer(repository) == 1
    os.rename(away, tmp_path)


def test_labels_and_all_versions(make, tmp_path):
    for version in (1, 2, 3):
        serve_models.write(tmp_path, version)
    everything = make(versions="all")
    everything.poll()
    assert [_answer(everything, v) for v in (None, 0, 1, 2, 3)] == [3, 3, 1, 2, 3]
    labelled = make(labels={"stable": 1, "canary": 3, "gone": 9})
    labelled.poll()
    assert labelled.available() == (1, 3)
    assert [_answer(labelled, label=name) for name in ("stable", "canary")] == [1, 3]
    assert labelled.statuses(label="stable")[0].version == 1
    with pytest.raises(ServingError, match=r"Specific\(tiny, 9\)"):
        labelled.acquire(label="gone")
    with pytest.raises(ServingError, match="Unrecognized servable version label: other"):
        labelled.acquire(label="other")


def test_versions_change_under_requests_without_a_wrong_answer(make, tmp_path):
    repository = make()
    serve_models.write(tmp_path, 1)
    repository.poll()
    done, failures, seen = threading.Event(), [], set()

    def ask():
        while not done.is_set():
            try:
                seen.add(_answer(repository))
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in (2, 3, 4):
        serve_models.write(tmp_path, version)
        repository.poll()
        shutil.rmtree(tmp_path / str(version - 1))
    repository.poll()
    done.set()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert seen
    assert seen <= {1, 2, 3, 4}
    assert _answer(repository) == 4
    assert _states(repository) == {4: "AVAILABLE", 3: "END", 2: "END", 1: "END"}


# Warm-up


def _warm_up(path, *requests):
    from tensorflow_serving.apis import prediction_log_pb2

    folder = path / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for kind, fill in requests:
            log = prediction_log_pb2.PredictionLog()
            fill(getattr(log, kind).request)
            writer.write(log.SerializeToString())


def test_warm_up_records_are_replayed_before_a_version_is_served(make, tmp_path):
    pytest.importorskip("tensorflow_serving.apis")
    runs = []

    class Noting(Session):
        def run(self, signature, inputs, outputs, **options):
            runs.append((signature.name, {k: a.shape for k, a in inputs.items()}, outputs))
            return super().run(signature, inputs, outputs, **options)

    def predict(request):
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(0.5, tf.float32, (4, 3)))

    def classify(request):
        request.model_spec.signature_name = "classify"
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.extend([1, 2, 3])

    path = serve_models.write(tmp_path, 1)
    _warm_up(path, ("predict_log", predict), ("classify_log", classify))
    repository = make(load=Noting)
    repository.poll()
    assert repository.available() == (1,)
    assert runs == [
        ("serving_default", {"x": (4, 3)}, ("y",)),
        ("classify", {"inputs": (1,)}, ("classes", "scores")),
    ]


def test_a_version_that_fails_its_warm_up_is_refused(make, tmp_path):
    pytest.importorskip("tensorflow_serving.apis")

    def wrong(request):
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(0.5, tf.float32, (4, 2)))

    path = serve_models.write(tmp_path, 1)
    _warm_up(path, ("predict_log", wrong))
    repository = make()
    repository.poll()
    assert repository.available() == ()
    assert "Warm-up record 1" in repository.statuses()[0].error.message
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    file.write_bytes(file.read_bytes()[:-9])
    repository.poll()
    assert "are broken" in repository.statuses()[0].error.message
    unwarmed = make(warm_up=False)
    unwarmed.poll()
    assert unwarmed.available() == (1,)


# Session


def test_signatures_say_what_may_be_merged_and_errors_say_what_fits(first):
    session = Session(first)
    assert session.signatures["two"].merges
    assert session.signatures["picture"].merges
    assert not session.signatures["total"].merges  # a scalar
    assert "__saved_model_init_op" not in session.signatures
    spec = session.signatures["two"].inputs["a"]
    for wrong in (np.zeros((1, 3), np.int32), np.zeros((1, 2), np.int64), np.zeros(2, np.int32)):
        with pytest.raises(ServingError, match=r'Input "a" expects int32 \(any, 2\)'):
            spec.check("a", wrong)
    spec.check("a", np.zeros((7, 2), np.int32))
    signature = session.find("wait")
    with pytest.raises(ServingError) as caught:
        session.run(signature, {"seconds": np.float32([30])}, ("waited",), timeout=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    session.close()


def test_a_savedmodel_of_tensorflow_1_is_served(tmp_path):
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session() as old:
        x = tf.compat.v1.placeholder(tf.float32, (None, 2))
        weight = tf.compat.v1.get_variable("w", initializer=3.0, use_resource=False)
        old.run(tf.compat.v1.global_variables_initializer())
        inputs, outputs = {"x": x}, {"y": x * weight}
        tf.compat.v1.saved_model.simple_save(old, str(tmp_path / "1"), inputs, outputs)
    session = Session(tmp_path / "1")
    answer = session.run(session.find(""), {"x": np.float32([[1, 2]])}, ("y",))
    np.testing.assert_array_equal(answer["y"], [[3, 6]])
    assert session.signatures["serving_default"].method == session_lib.PREDICT
