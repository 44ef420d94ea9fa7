"""Clients of every kind at once, with restarts and new versions: nothing lost, crossed or wrong.

`python tests/test_serve_load.py SECONDS` runs it for longer and prints figures.
"""

import base64
import collections
import contextlib
import http.client
import json
import pathlib
import socket
import sys
import tempfile
import threading
import time

import numpy as np
import serve_models
import tensorflow as tf

from efficientnet_tf.serve import server
from efficientnet_tf.serve.batching import Batching
from efficientnet_tf.serve.limits import Limits

LIMITS = Limits(max_body=300_000, max_queue=32, header_timeout=3.0, body_timeout=3.0)
COLORS = [(10, 20, 30), (200, 0, 7), (0, 255, 128)]


class Run:
    """A server that is restarted and its clients; `problems` must stay empty."""

    def __init__(self, folder, use_grpc):
        self.folder = folder
        self.use_grpc = use_grpc
        self.ports = (0, 0 if use_grpc else None)
        self.start()
        self.ports = (self.server.port, self.server.grpc_port)
        self.done = threading.Event()
        self.restarting = threading.Lock()
        self.restarts = 0
        self.counts = collections.Counter()
        self.seconds = []
        self.problems = []

    def start(self):
        batching = Batching(max_batch_size=8, timeout=0.003, threads=2)
        self.server = server.start(
            self.folder,
            name="tiny",
            port=self.ports[0],
            grpc_port=self.ports[1],
            poll_seconds=0.2,
            batching=batching,
            limits=LIMITS,
        )
        assert self.server.wait_ready(60)

    def restart(self):
        with self.restarting:
            self.restarts += 1
            self.server.stop(20)
            self.start()
        self.restarts += 1  # even: no restart is going on

    def tolerates(self, before):
        """Whether a connection may fail: a restart went on since `before` was noted."""
        return self.restarts != before or before % 2 == 1

    def post(self, body, path=":predict"):
        """(status, answer); None when a restart took the connection before it was answered."""
        before = self.restarts
        client = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=30)
        try:
            client.request("POST", f"/v1/models/tiny{path}", body)
            answer = client.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, http.client.IncompleteRead) or not self.tolerates(before):
                self.problems.append(f"lost: {error!r}")
            self.counts["connection taken by a restart"] += 1
            return None
        finally:
            client.close()

    def until_answered(self, body):
        """The answer to a right request, however often it has to be sent again."""
        for _ in range(500):
            start = time.perf_counter()
            got = self.post(body)
            if got and got[0] == 200:
                self.seconds.append(time.perf_counter() - start)
                return got[1]
            if got and got[0] not in (503, 404):  # full, or a restarted server has no version yet
                self.problems.append(f"wrong: {got}")
                return None
            self.counts["sent again"] += 1
            time.sleep(0.02)
        self.problems.append("lost: never answered")
        return None

    # What the clients do. Each gets numbers of its own.

    def right_rows(self, random):
        x = random.uniform(-100, 100, (random.integers(1, 7), 3)).astype(np.float32)
        answer = self.until_answered(json.dumps({"instances": x.tolist()}))
        if answer:
            self.check_rows(x, np.float32(answer["predictions"]))

    def right_pictures(self, random):
        picks = random.integers(0, len(COLORS), random.integers(1, 4))
        pictures = [{"b64": PICTURES[pick]} for pick in picks]
        document = {"signature_name": "picture", "inputs": {"image_bytes": pictures}}
        answer = self.until_answered(json.dumps(document))
        if answer and answer["outputs"] != [list(map(float, COLORS[pick])) for pick in picks]:
            self.problems.append(f"crossed: {picks} {answer}")

    def right_over_grpc(self, random):
        if not self.use_grpc:
            return
        import grpc
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        x = random.uniform(-100, 100, (random.integers(1, 7), 3)).astype(np.float32)
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "tiny"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(x))
        for _ in range(500):
            before = self.restarts
            try:
                with grpc.insecure_channel(f"127.0.0.1:{self.ports[1]}") as channel:
                    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                    answer = stub.Predict(request, timeout=30)
            except grpc.RpcError as error:
                full = "queue" in error.details()
                if not full and not self.tolerates(before):
                    self.problems.append(f"lost: {error.code()} {error.details()}")
                self.counts["sent again"] += 1
                time.sleep(0.02)
                continue
            self.check_rows(x, tf.make_ndarray(answer.outputs["y"]))
            return
        self.problems.append("lost: never answered")

    def check_rows(self, x, got):
        version = round((got[0, 0] - x[0, 0]) / 1000)
        if version not in (1, 2) or not np.array_equal(got, serve_models.expected(x, version)):
            self.problems.append(f"crossed: {x} {got}")

    def wrong_row(self, random):
        a = random.integers(0, 9, (3, 2))
        a[1] = -1
        x = random.uniform(0, 1, (3, 3))
        inputs = {"a": a.tolist(), "x": x.tolist()}
        got = self.post(json.dumps({"signature_name": "two", "inputs": inputs}))
        if got and (got[0] not in (400, 503, 404) or (got[0] == 400 and "row 1 " not in str(got))):
            self.problems.append(f"wrong: {got}")

    def malformed(self, random):
        bodies = [b"{", b'{"instances": [[1, 2]]}', b'{"inputs": "a"}', random.bytes(50), b""]
        got = self.post(bodies[random.integers(len(bodies))])
        if got and got[0] not in (400, 404):
            self.problems.append(f"wrong: {got}")

    def broken_picture(self, random):
        content = base64.b64decode(PICTURES[0])[: random.integers(8, 60)]
        pictures = [{"b64": PICTURES[1]}, {"b64": base64.b64encode(content).decode()}]
        got = self.post(json.dumps({"signature_name": "picture", "instances": pictures}))
        if got and got[0] not in (400, 503, 404):
            self.problems.append(f"wrong: {got}")

    def oversized(self, random):
        got = self.post(bytes(300_001 + random.integers(500_000)))
        if got and got[0] != 413:
            self.problems.append(f"wrong: {got}")

    def interrupted(self, random):
        """Goes away in the middle of a request, or with the answer unread."""
        body = json.dumps({"instances": [[1.0, 2.0, 3.0]] * 5}).encode()
        head = f"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"
        whole = head.encode() + b"\r\n\r\n" + body
        sent = whole[: random.integers(1, len(whole) + 1)] if random.random() < 0.7 else whole
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.ports[0]), timeout=10) as client,
        ):
            client.sendall(sent)

    def client(self, seed):
        """Asks until the end; most of it is right."""
        random = np.random.default_rng(seed)
        right = [self.right_rows, self.right_pictures, self.right_over_grpc]
        wrong = [self.wrong_row, self.malformed, self.broken_picture, self.oversized]
        actions = 4 * right + [*wrong, self.interrupted]
        while not self.done.is_set():
            action = actions[random.integers(len(actions))]
            self.counts[action.__name__] += 1
            try:
                action(random)
            except Exception as error:
                self.problems.append(f"{action.__name__}: {error!r}")


def _picture(color):
    pixels = np.full((6, 5, 3), color, np.uint8)
    return base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()


PICTURES = [_picture(color) for color in COLORS]


def run(folder, seconds, *, clients=8, restarts=3, use_grpc=True):
    """Runs the load; returns the finished Run."""
    serve_models.remember(serve_models.write(folder, 1))
    load = Run(folder, use_grpc)
    threads = [
        threading.Thread(target=load.client, args=(seed,), daemon=True) for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    for turn in range(restarts):
        time.sleep(seconds / (restarts + 1))
        if turn == 0:
            serve_models.write(folder, 2)
        load.restart()
    time.sleep(seconds / (restarts + 1))
    load.done.set()
    for thread in threads:
        thread.join(60)
    # Nothing is held for clients that went away.
    end = time.monotonic() + 20
    while "serve_connections 0" not in (text := load.server.metrics.text()):
        if time.monotonic() > end:
            load.problems.append("connections are left open")
            break
        time.sleep(0.1)
    if "serve_queue_length 0" not in text:
        load.problems.append("requests are left in the queue")
    load.server.stop()
    return load


def test_nothing_is_lost_crossed_or_wrong_under_load(tmp_path):
    try:
        import tensorflow_serving.apis  # noqa: F401

        use_grpc = True
    except ImportError:
        use_grpc = False
    load = run(tmp_path, 10.0, use_grpc=use_grpc)
    assert not load.problems, load.problems[:5]
    for name in ("right_rows", "right_pictures", "malformed", "oversized", "interrupted"):
        assert load.counts[name], name


if __name__ == "__main__":
    from efficientnet_tf.serve import logs

    logs.to_stderr(logs.logging.ERROR)
    asked = float(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        finished = run(pathlib.Path(temporary), asked, restarts=max(3, round(asked / 15)))
    took = np.sort(finished.seconds)
    print(json.dumps(dict(finished.counts), indent=1))
    print(f"{len(took)} right answers over REST in {asked:.0f} s")
    print(
        "ms at 50, 90, 99, 100 %:",
        *(round(1000 * np.quantile(took, q), 1) for q in (0.5, 0.9, 0.99, 1)),
    )
    print(f"problems: {len(finished.problems)}", *finished.problems[:10], sep="\n")
    sys.exit(bool(finished.problems))
