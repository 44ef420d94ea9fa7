"""The whole server: limits over both protocols, metrics, health, the page, and the script."""

import base64
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import serve_models
import tensorflow as tf

from efficientnet_tf.serve import logs, server
from efficientnet_tf.serve.batching import Batching
from efficientnet_tf.serve.limits import Limits

X = [[1.0, 2.0, 3.0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    serve_models.remember(serve_models.write(folder, 1))
    return folder


@pytest.fixture(scope="module")
def limited(folder):
    """A server with tight limits."""
    limits = Limits(
        max_body=200_000, max_pixels=10_000, max_rows=4, max_containers=1000, request_timeout=5.0
    )
    running = server.start(
        folder, name="tiny", port=0, grpc_port=_grpc_port(), limits=limits, batching=Batching(4)
    )
    assert running.wait_ready(60)
    yield running
    running.stop()


def _grpc_port():
    try:
        import tensorflow_serving.apis  # noqa: F401
    except ImportError:
        return None
    return 0


@pytest.fixture
def url(limited):
    return f"http://127.0.0.1:{limited.port}"


def _metrics(url):
    with urllib.request.urlopen(f"{url}/monitoring/prometheus/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


def _value(text, name, **labels):
    """A metric's value, 0 where it is not there."""
    wanted = {f'{key}="{value}"' for key, value in labels.items()}
    for line in text.splitlines():
        found = re.fullmatch(re.escape(name) + r"(?:\{(.*)\})? (\S+)", line)
        if found and wanted == set((found[1] or "").split(",")) - {""}:
            return float(found[2])
    return 0.0


def test_limits_hold_over_rest(url):
    predict = f"{url}/v1/models/tiny:predict"
    bomb = tf.io.encode_png(np.zeros((200, 200, 3), np.uint8)).numpy()
    small = tf.io.encode_png(np.full((5, 5, 3), 9, np.uint8)).numpy()
    codes = [{"b64": base64.b64encode(content).decode()} for content in (small, bomb)]
    for document, words in (
        ({"signature_name": "picture", "instances": codes}, r"image_bytes\[1\]: the PNG has 200 x"),
        ({"instances": X * 5}, "may have 4 rows"),
        ({"instances": X * 1001}, "more than 1000 lists"),
    ):
        status, answer = serve_models.ask(predict, document)
        assert status == 400
        assert re.search(words, answer["error"])
    status, answer = serve_models.ask(predict, data=b" " * 200_001)
    assert (status, answer) == (413, {"error": "The body may have 200000 bytes"})
    document = {"signature_name": "wait", "inputs": [30.0]}
    status, answer = serve_models.ask(predict, document)
    assert status == 504
    assert serve_models.ask(predict, {"instances": X})[0] == 200


def test_limits_hold_over_grpc(limited):
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("tensorflow_serving.apis")
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    status = grpc.StatusCode

    def code(timeout=30.0, signature="", **inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "tiny"
        request.model_spec.signature_name = signature
        for name, proto in inputs.items():
            request.inputs[name].CopyFrom(proto)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=timeout)
        return caught.value.code(), caught.value.details()

    def filled(*sizes):
        """A tensor of twenty bytes that stands for any number of values."""
        proto = tf.make_tensor_proto(0.0)
        for size in sizes:
            proto.tensor_shape.dim.add().size = size
        return proto

    with grpc.insecure_channel(f"127.0.0.1:{limited.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for sizes in ((10**6, 10**6, 10**6), (10**18, 10**18), (10**7, 3)):
            got, details = code(x=filled(*sizes))
            assert got == status.INVALID_ARGUMENT
            assert "larger than the 200000 bytes" in details
        assert code(x=filled(-1, 3))[0] == status.INVALID_ARGUMENT
        assert code(x=filled(*[1] * 40))[0] == status.INVALID_ARGUMENT
        unknown = filled()
        unknown.tensor_shape.unknown_rank = True
        assert code(x=unknown)[0] == status.INVALID_ARGUMENT
        wrong = tf.make_tensor_proto(np.float32(X))
        wrong.tensor_content = wrong.tensor_content[:-1]
        assert code(x=wrong)[0] == status.INVALID_ARGUMENT
        big = tf.make_tensor_proto(np.zeros((20_000, 3), np.float32))
        assert code(x=big)[0] == status.RESOURCE_EXHAUSTED
        bomb = tf.io.encode_png(np.zeros((200, 200, 3), np.uint8)).numpy()
        got, details = code(signature="picture", image_bytes=tf.make_tensor_proto([bomb]))
        assert got == status.INVALID_ARGUMENT
        assert "image_bytes[0]: the PNG has 200 x 200" in details
        slow = tf.make_tensor_proto(np.float32([30.0]))
        assert code(0.3, "wait", seconds=slow)[0] == status.DEADLINE_EXCEEDED


def test_metrics_count_what_happened(url):
    before = _metrics(url)
    predict = f"{url}/v1/models/tiny:predict"
    for _ in range(3):
        assert serve_models.ask(predict, {"instances": X * 2})[0] == 200
    assert serve_models.ask(predict, {"instances": [1]})[0] == 400
    assert serve_models.ask(f"{url}/v1/models/x%22%0a:predict", {"instances": X})[0] == 404
    after = _metrics(url)

    def more(name, **labels):
        return _value(after, name, **labels) - _value(before, name, **labels)

    count = ":tensorflow:serving:request_count"
    assert more(count, model_name="tiny", status="OK") == 3
    assert more(count, model_name="tiny", status="INVALID_ARGUMENT") == 1
    assert more(count, model_name="unknown", status="NOT_FOUND") == 1
    labels = {"model_name": "tiny", "API": "Predict", "entrypoint": "REST"}
    latency = ":tensorflow:serving:request_latency"
    assert more(f"{latency}_count", **labels) == 4
    assert more(f"{latency}_bucket", **labels, le="+Inf") == 4
    assert 0 < more(f"{latency}_sum", **labels) < 4 * 60e6
    assert more("serve_batch_rows_sum") == 6
    assert more("serve_batch_rows_bucket", le="1") == 0
    assert more("serve_batch_rows_bucket", le="2") == 3
    assert _value(after, "serve_queue_length") == 0
    assert _value(after, "serve_loads_total", result="loaded") == 1
    assert _value(after, "serve_version_available", version="1") == 1


def test_prometheus_own_parser_reads_the_metrics(url):
    parser = pytest.importorskip("prometheus_client.parser")
    assert serve_models.ask(f"{url}/v1/models/tiny:predict", {"instances": X})[0] == 200
    families = {f.name: f for f in parser.text_string_to_metric_families(_metrics(url))}
    assert families["serve_queue_seconds"].type == "histogram"
    (labels,) = {
        tuple(sample.labels.items())
        for sample in families[":tensorflow:serving:request_count"].samples
        if sample.labels["model_name"] == "tiny" and sample.labels["status"] == "OK"
    }
    assert dict(labels) == {"model_name": "tiny", "status": "OK"}


def test_health_and_paths_beside_the_api(url):
    assert serve_models.ask(f"{url}/healthz") == (200, {"status": "ok"})
    assert serve_models.ask(f"{url}/readyz") == (200, {"status": "ready"})
    assert serve_models.ask(f"{url}/v1/models") == (200, {"models": [{"name": "tiny"}]})
    for path in ("/nothing", "/../../etc/passwd", "/page.html/..", "/%2e%2e/setup.cfg", "/v1"):
        assert serve_models.ask(url + path) == (404, {"error": "Not found"})
    assert serve_models.ask(f"{url}/healthz", {"a": 1})[0] == 405


def test_the_page_comes_with_a_strict_policy(url):
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ):
        with urllib.request.urlopen(url + path, timeout=30) as answer:
            assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            content = answer.read().decode()
        if path == "/":  # the policy forbids what is inline
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", content)


def test_a_server_without_versions_is_alive_and_not_ready(tmp_path):
    running = server.start(tmp_path, port=0, poll_seconds=0.05)
    url = f"http://127.0.0.1:{running.port}"
    try:
        assert serve_models.ask(f"{url}/healthz")[0] == 200
        assert serve_models.ask(f"{url}/readyz")[0] == 503
        assert serve_models.ask(f"{url}/v1/models/default:predict", {"instances": X})[0] == 404
        with pytest.raises(OSError, match="in use"):
            server.start(tmp_path, port=running.port)
    finally:
        running.stop()


def test_versions_change_while_a_request_is_answered(tmp_path, folder):
    serve_models.write(tmp_path, 1)
    running = server.start(tmp_path, name="tiny", port=0, poll_seconds=0.05)
    assert running.wait_ready(60)
    model = f"http://127.0.0.1:{running.port}/v1/models/tiny"

    def states():
        rows = serve_models.ask(model)[1]["model_version_status"]
        return {row["version"]: row["state"] for row in rows}

    def until(version, state):
        end = time.monotonic() + 60
        while states().get(version) != state:
            assert time.monotonic() < end, states()
            time.sleep(0.02)

    try:
        assert serve_models.ask(f"{model}:predict", {"instances": X})[0] == 200
        answers = []
        document = {"signature_name": "wait", "inputs": [2.0]}
        predict = f"{model}/versions/1:predict"
        thread = threading.Thread(
            target=lambda: answers.append(serve_models.ask(predict, document))
        )
        thread.start()
        while "serve_queue_seconds_count 2" not in running.metrics.text():  # it runs
            time.sleep(0.01)
        serve_models.write(tmp_path, 2)
        until("2", "AVAILABLE")
        (row,) = serve_models.ask(f"{model}:predict", {"instances": X})[1]["predictions"]
        assert np.array_equal(np.float32([row]), serve_models.expected(X, 2))
        thread.join(60)
        assert answers == [(200, {"outputs": [2.0]})]
        until("1", "END")
    finally:
        running.stop()


def test_an_exports_folder_and_wrong_ones_are_told_apart(folder, tmp_path):
    assert server.versions_folder(folder) == folder
    (tmp_path / "saved_model" / "1").mkdir(parents=True)
    assert server.versions_folder(tmp_path) == tmp_path / "saved_model"
    with pytest.raises(ValueError, match="is itself a SavedModel"):
        server.start(folder / "1", port=0)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        server.start(tmp_path / "nowhere", port=0)
    for wrong in ({"name": "a/b"}, {"labels": {"": 1}}, {"versions": "some"}, {"poll_seconds": 0}):
        with pytest.raises(ValueError, match=r"name|labels|versions|poll_seconds"):
            server.start(folder, port=0, **wrong)


def test_logs_are_json_lines():
    record = logging.makeLogRecord({"msg": "%s", "args": ("request",), "levelname": "INFO"})
    record.fields = {"path": '/"\n', "status": 200}
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    got = json.loads(line)
    assert got.pop("time").endswith("Z")
    assert got == {"level": "info", "event": "request", "path": '/"\n', "status": 200}


# The script


def _script(root, *arguments):
    return [sys.executable, str(root / "scripts" / "serve.py"), *map(str, arguments)]


def test_the_script_serves_rest_without_grpcio_and_answers_before_it_ends(root, folder, tmp_path):
    (tmp_path / "grpc.py").write_text("raise ImportError('not installed')")
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin", "HOME": str(tmp_path)}
    command = _script(root, folder, "--port=0", "--name=tiny", "--max_batch_size=4")
    log_file = tmp_path / "log"
    with (
        log_file.open("w") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as process,
    ):
        try:
            line = process.stdout.readline()
            url = re.fullmatch(r"Development server: (http://127.0.0.1:\d+)/\n", line)[1]
            end = time.monotonic() + 60
            while serve_models.ask(f"{url}/readyz")[0] != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            answers = []
            document = {"signature_name": "wait", "inputs": [1.5]}
            predict = f"{url}/v1/models/tiny:predict"
            thread = threading.Thread(
                target=lambda: answers.append(serve_models.ask(predict, document))
            )
            thread.start()
            while "serve_queue_seconds_count 1" not in _metrics(url):  # it runs
                assert time.monotonic() < end
            process.send_signal(signal.SIGTERM)
            thread.join(60)
            assert answers == [(200, {"outputs": [1.5]})]
            assert process.wait(60) == 0
        finally:
            process.kill()
    lines = log_file.read_text().splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert [e["event"] for e in events if e["event"] != "request"] == [
        "listening",
        "loaded",
        "stopping",
        "unloaded",
        "stopped",
    ]
    (request,) = [e for e in events if e["event"] == "request" and e["path"].endswith(":predict")]
    assert request["status"] == 200


def test_the_script_says_what_is_wrong(root, folder, tmp_path):
    (tmp_path / "grpc.py").write_text("raise ImportError('not installed')")
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "PATH": "/usr/bin", "HOME": str(tmp_path)}
    cases = [
        ([], "give one folder"),
        ([folder, "--labels=stable"], "--labels expects label:version"),
        ([folder, "--port=0", "--grpc_port=0"], 'pip install "efficientnet_tf[serving]"'),
    ]
    processes = [
        subprocess.Popen(
            _script(root, *arguments), stderr=subprocess.PIPE, text=True, env=environment
        )
        for arguments, _ in cases
    ]
    for process, (_, words) in zip(processes, cases, strict=True):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert f"error: {words}" in errors or words in errors
        assert "Traceback" not in errors
