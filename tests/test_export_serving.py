"""Warm-up records and configuration for TensorFlow Serving."""

import http.server
import subprocess
import sys
import threading
from contextlib import contextmanager

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow.core.example import example_pb2

from efficientnet_tf.config.model import describe
from efficientnet_tf.export import graph, saved_model, serving
from efficientnet_tf.models.efficientnet import build
from efficientnet_tf.preprocessing import NORMALIZATIONS, Preprocessing
from efficientnet_tf.recipes import RECIPES
from efficientnet_tf.serve import session, warmup

SIZE = 32
NAMES = ("ant", "bee", "cow", "dog", "emu", "fox", "gnu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A SavedModel with every signature."""
    pytest.importorskip("tensorflow_serving")
    keras.utils.set_random_seed(5)
    model = build(
        describe(RECIPES["digits"].model), classes=len(NAMES), input_shape=(SIZE, SIZE, 3)
    )
    mean, std = NORMALIZATIONS["torch"]
    path = tmp_path_factory.mktemp("export") / "saved_model" / "1"
    saved_model.write(
        graph.parts(model),
        path,
        rule=Preprocessing("torch", mean, std, SIZE, crop="pad32"),
        class_names=NAMES,
    )
    return path


def _logs(path):
    from tensorflow_serving.apis import prediction_log_pb2

    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        yield prediction_log_pb2.PredictionLog.FromString(record)


def _feeds(log):
    """Signature and inputs of a record, read as TensorFlow Serving reads them."""
    if log.WhichOneof("log_type") == "classify_log":
        request = log.classify_log.request
        examples = request.input.example_list.examples
        return request.model_spec.signature_name, {
            "inputs": np.array([example.SerializeToString() for example in examples], object)
        }
    request = log.predict_log.request
    # parse_tensor is Tensor::FromProto, which the server calls.
    return request.model_spec.signature_name, {
        name: tf.io.parse_tensor(proto.SerializeToString(), tf.as_dtype(proto.dtype)).numpy()
        for name, proto in request.inputs.items()
    }


def test_each_signature_is_asked_at_each_batch_size_and_answers(exported):
    path = serving.warm_up(exported, batch_sizes=(3, 1), size=SIZE)
    assert path == exported / "assets.extra" / "tf_serving_warmup_requests"
    assert [str(p.name) for p in path.parent.iterdir()] == [path.name]
    feeds = [_feeds(log) for log in _logs(path)]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(exported))
        signatures = {k: v for k, v in loaded.signature_def.items() if not k.startswith("__")}
        asked = []
        for name, inputs in feeds:
            definition = signatures[name]
            assert set(inputs) == set(definition.inputs)
            (batch,) = {len(value) for value in inputs.values()}
            asked.append((name, batch))
            answers = session.run(
                {key: info.name for key, info in definition.outputs.items()},
                {definition.inputs[key].name: value for key, value in inputs.items()},
            )
            for key, answer in answers.items():
                assert len(answer) == batch, (name, key)
                if answer.dtype.kind == "f":
                    assert np.isfinite(answer).all(), (name, key)
    assert len(signatures) >= 6
    assert sorted(asked) == sorted((name, batch) for name in signatures for batch in (1, 3))


def test_records_are_small_and_of_the_right_kind(exported):
    path = serving.warm_up(exported, batch_sizes=(8,), size=SIZE)
    kinds = {_feeds(log)[0]: log.WhichOneof("log_type") for log in _logs(path)}
    assert kinds.pop("classify") == "classify_log"
    assert set(kinds.values()) == {"predict_log"}
    # Pixels of a batch alone would be 8 * 32 * 32 * 3 * 4 bytes for each signature of floats.
    assert path.stat().st_size < 30_000
    shapes = {
        name: value.shape
        for log in _logs(path)
        for name, value in _feeds(log)[1].items()
        if value.ndim == 4
    }
    assert set(shapes.values()) == {(8, SIZE, SIZE, 3)}


def test_the_development_server_replays_them_too(exported):
    serving.warm_up(exported, batch_sizes=(1, 3), size=SIZE)
    loaded = session.Session(exported)
    assert warmup.replay(loaded) == 2 * len(loaded.signatures)
    loaded.close()


def test_a_given_picture_is_sent_and_gives_pixels_their_size(exported):
    picture = tf.io.encode_png(np.full((20, 30, 3), 9, np.uint8)).numpy()
    path = serving.warm_up(exported, batch_sizes=(2,), picture=picture)
    feeds = dict(_feeds(log) for log in _logs(path))
    assert list(feeds["serving_default"]["image_bytes"]) == [picture, picture]
    (example, same) = feeds["classify"]["inputs"]
    assert example == same
    features = example_pb2.Example.FromString(example).features.feature
    assert list(features["image/encoded"].bytes_list.value) == [picture]
    assert feeds["images"]["images"].shape == (2, 20, 30, 3)
    np.testing.assert_array_equal(feeds["explain"]["class_id"], [-1, -1])


def test_the_same_request_gives_the_same_bytes(exported):
    first = serving.warm_up(exported, batch_sizes=(1, 4), size=SIZE).read_bytes()
    assert serving.warm_up(exported, batch_sizes=(4, 1), size=SIZE).read_bytes() == first
    assert serving.warm_up(exported, batch_sizes=(1, 5), size=SIZE).read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sizes": ()}, r"different whole numbers, at least 1. Received: batch_sizes=\(\)"),
        ({"batch_sizes": (0,)}, r"Received: batch_sizes=\(0,\)"),
        ({"batch_sizes": (2, 2)}, r"Received: batch_sizes=\(2, 2\)"),
        ({"batch_sizes": (1.5,)}, r"Received: batch_sizes=\(1.5,\)"),
        ({"batch_sizes": tuple(range(1, 201))}, r"at most 1000 records. \d signatures with 200"),
        ({"picture": b"no picture"}, r"content of a picture file. Received: 10 bytes"),
        ({"size": 0}, r"size must be at least 1 pixel. Received: size=0"),
    ],
)
def test_requests_that_cannot_be_made_are_refused(exported, arguments, message):
    before = serving.warm_up(exported).read_bytes()
    with pytest.raises(ValueError, match=message):
        serving.warm_up(exported, **arguments)
    assert (exported / serving.WARM_UP).read_bytes() == before
    assert len(list((exported / "assets.extra").iterdir())) == 1


def test_what_is_no_saved_model_of_pictures_is_refused(tmp_path):
    pytest.importorskip("tensorflow_serving")
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb does not exist"):
        serving.warm_up(tmp_path)
    module = tf.Module()
    module.double = tf.function(
        lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec((None, 7), tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"double": module.double})
    with pytest.raises(ValueError, match=r"double:x of the SavedModel .* shape \(-1, 7\)"):
        serving.warm_up(tmp_path / "1")
    assert not (tmp_path / "1/assets.extra").exists()


def test_a_missing_package_is_named(exported, tmp_path, monkeypatch):
    for module in ("apis.prediction_log_pb2", "config.model_server_config_pb2"):
        monkeypatch.setitem(sys.modules, f"tensorflow_serving.{module}", None)
    for call in (lambda: serving.warm_up(exported), lambda: serving.configs(tmp_path, "b0")):
        with pytest.raises(ImportError, match=r'pip install "efficientnet_tf\[serving\]"'):
            call()
    assert not list(tmp_path.iterdir())


def _message(name, *fields, types=()):
    """A message of TensorFlow Serving's that is in no Python package, from its .proto file."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", syntax="proto3", package=name)
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, members in ((name, fields), *types):
        descriptor = file.message_type.add(name=message)
        for number, (field, kind) in enumerate(members, start=1):
            member = descriptor.field.add(name=field, number=number, label="LABEL_OPTIONAL")
            if kind.startswith("repeated "):
                member.label, kind = "LABEL_REPEATED", kind.removeprefix("repeated ")
            if kind.startswith("."):
                member.type, member.type_name = "TYPE_MESSAGE", kind
            else:
                member.type = f"TYPE_{kind.upper()}"
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{name}.{name}"))


def test_configuration_is_what_the_server_parses(tmp_path):
    pytest.importorskip("tensorflow_serving")
    from tensorflow_serving.config import model_server_config_pb2

    batching = serving.Batching(sizes=(1, 3, 16), timeout_micros=0, threads=5, max_enqueued=7)
    paths = serving.configs(tmp_path, "b0-flowers.v2", saved_model="served", batching=batching)
    assert [path.name for path in paths] == [
        "models.config",
        "batching_parameters.txt",
        "monitoring.config",
        "docker-compose.yml",
    ]
    models = text_format.Parse(
        paths[0].read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert [model.name for model in models] == ["b0-flowers.v2"]
    assert models[0].base_path == "/models/served"
    assert models[0].model_platform == "tensorflow"
    assert models[0].model_version_policy.latest.num_versions == 1

    whole = ".google.protobuf.Int64Value"
    # session_bundle_config.proto
    parameters = text_format.Parse(
        paths[1].read_text(),
        _message(
            "BatchingParameters",
            ("max_batch_size", whole),
            ("batch_timeout_micros", whole),
            ("max_enqueued_batches", whole),
            ("num_batch_threads", whole),
            ("thread_pool_name", ".google.protobuf.StringValue"),
            ("allowed_batch_sizes", "repeated int64"),
            ("pad_variable_length_inputs", "bool"),
        )(),
    )
    assert list(parameters.allowed_batch_sizes) == [1, 3, 16]
    assert parameters.max_batch_size.value == 16
    assert parameters.HasField("batch_timeout_micros")
    assert parameters.batch_timeout_micros.value == 0
    assert parameters.num_batch_threads.value == 5
    assert parameters.max_enqueued_batches.value == 7
    assert not parameters.pad_variable_length_inputs

    # monitoring_config.proto
    monitoring = text_format.Parse(
        paths[2].read_text(),
        _message(
            "MonitoringConfig",
            ("prometheus_config", ".MonitoringConfig.PrometheusConfig"),
            types=[("PrometheusConfig", (("enable", "bool"), ("path", "string")))],
        )(),
    )
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


def _compose(path):
    yaml = pytest.importorskip("yaml")
    (service,) = yaml.safe_load(path.read_text())["services"].values()
    return service


def test_compose_file_starts_the_server_on_the_folder(tmp_path):
    pytest.importorskip("tensorflow_serving")
    options = {"image": "tensorflow/serving:2.19.1", "ports": (18500, 18501)}
    *_, path = serving.configs(tmp_path, "b0", batching=serving.Batching(), **options)
    service = _compose(path)
    assert service["image"] == "tensorflow/serving:2.19.1"
    assert service["ports"] == ["127.0.0.1:18500:8500", "127.0.0.1:18501:8501"]
    (volume,) = service["volumes"]
    assert volume == {"type": "bind", "source": ".", "target": "/models", "read_only": True}
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    assert flags.pop("enable_model_warmup") == flags.pop("enable_batching") == "true"
    assert set(flags) == {
        "model_config_file",
        "monitoring_config_file",
        "batching_parameters_file",
    }
    for file in flags.values():
        assert (tmp_path / file.removeprefix("/models/")).is_file()


def test_requests_are_joined_only_where_asked_for(tmp_path):
    pytest.importorskip("tensorflow_serving")
    *_, path = serving.configs(tmp_path, "b0")
    assert not [flag for flag in _compose(path)["command"] if "batching" in flag]
    assert (tmp_path / "batching_parameters.txt").is_file()


@contextmanager
def _status_server(state):
    """Answers as TensorFlow Serving does when it is asked for a model's status."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            body = f'{{"model_version_status": [{{"version": "1", "state": "{state}"}}]}}'.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


@pytest.mark.parametrize(("state", "healthy"), [("AVAILABLE", True), ("LOADING", False)])
def test_health_check_tells_whether_the_model_is_available(tmp_path, state, healthy):
    pytest.importorskip("tensorflow_serving")
    *_, path = serving.configs(tmp_path, "b0")
    kind, *command = _compose(path)["healthcheck"]["test"]
    assert kind == "CMD"
    with _status_server(state) as (port, asked):
        there = [part.replace("/8501 ", f"/{port} ") for part in command]
        assert (subprocess.run(there, timeout=30).returncode == 0) is healthy
    assert asked == ["/v1/models/b0"]
    stopped = subprocess.run(there, timeout=30, capture_output=True)
    assert stopped.returncode != 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": ""},
        {"name": "../b0"},
        {"name": "a/b"},
        {"name": "a:b"},
        {"name": 'b0"} config { name: "x'},
        {"name": "b0'; rm -rf"},
        {"name": "b0\nrestart: always"},
        {"name": "b0\n"},
        {"name": "$HOME"},
        {"name": "-b0"},
        {"name": "é"},
        {"name": "b" * 101},
        {"name": None},
        {"saved_model": ".."},
        {"saved_model": "/etc"},
        {"image": "a b"},
        {"image": "tensorflow/serving\nprivileged: true"},
        {"host": "0.0.0.0:1"},
        {"host": "300.1.1.1"},
        {"ports": (8500, 8500)},
        {"ports": (0, 8501)},
        {"ports": (8500, 65536)},
    ],
)
def test_wrong_names_addresses_and_ports_are_refused(tmp_path, arguments):
    pytest.importorskip("tensorflow_serving")
    ((what, _),) = arguments.items()
    with pytest.raises(ValueError, match=rf"^{what} must be .* Received: {what}="):
        serving.configs(tmp_path, **{"name": "b0", **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sizes", ()),
        ("sizes", (4, 1)),
        ("sizes", (1, 1)),
        ("sizes", (0, 1)),
        ("timeout_micros", -1),
        ("threads", 0),
        ("max_enqueued", 0),
        ("threads", 1.5),
    ],
)
def test_wrong_batching_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must .* Received: {field}="):
        serving.Batching(**{field: value})


def test_files_that_were_changed_are_not_overwritten(tmp_path):
    pytest.importorskip("tensorflow_serving")
    paths = serving.configs(tmp_path, "b0")
    assert serving.configs(tmp_path, "b0") == paths
    (tmp_path / "monitoring.config").write_text("mine")
    with pytest.raises(FileExistsError, match=r"monitoring\.config is there with other content"):
        serving.configs(tmp_path, "b0", image="tensorflow/serving:nightly")
    assert ":latest" in (tmp_path / "docker-compose.yml").read_text()
    assert (tmp_path / "monitoring.config").read_text() == "mine"
