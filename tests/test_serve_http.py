"""Connections: what HTTP/1.1 allows, and clients that mean no good."""

import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time

import pytest

from efficientnet_tf.serve.http import HttpServer
from efficientnet_tf.serve.http_messages import Response
from efficientnet_tf.serve.limits import Limits
from efficientnet_tf.serve.metrics import Metrics


class Echo:
    """Answers with what was sent; /wait waits until it is let go."""

    def __init__(self):
        self.go = threading.Event()
        self.waiting = threading.Semaphore(0)

    def handle(self, request):
        if request.path == "/wait":
            self.waiting.release()
            assert self.go.wait(30)
        answer = {"method": request.method, "path": request.path, "size": len(request.body)}
        return Response(200, json.dumps(answer).encode())

    def quick(self, request):
        return Response(200, b"{}") if request.path == "/quick" else None


@pytest.fixture
def start():
    with contextlib.ExitStack() as stack:

        def start(**limits):
            echo = Echo()
            server = HttpServer(echo.handle, echo.quick, limits=Limits(**limits), metrics=Metrics())
            port = server.start("127.0.0.1", 0)
            stack.callback(lambda: server.stop(1))
            stack.callback(echo.go.set)
            return port, echo, server

        yield start


def _talk(port, *parts, pause=0.0, half_close=False):
    """Sends parts; returns everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has closed already; what it said can still be read
        return b"".join(iter(lambda: client.recv(65536), b""))


def _status(answer):
    return int(answer.split(b" ", 2)[1])


CLOSE = b"Host: a\r\nConnection: close\r\n"


def test_keep_alive_pipelining_and_head(start):
    port, *_ = start()
    first = b"POST /a?q=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    answer = _talk(port, first + b"GET /b HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b'"path": "/a", "size": 3' in answer
    assert b"Connection: keep-alive" in answer.split(b"/b")[0]
    head = _talk(port, b"HEAD /b HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"Content-Length: 43" in head
    old = _talk(port, b"GET / HTTP/1.0\r\n\r\n")  # without Host, and closed afterwards
    assert _status(old) == 200
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for size in (0, 5, 100_000):
        client.request("POST", "/x", bytes(size))
        assert json.loads(client.getresponse().read())["size"] == size
    client.close()


def test_chunked_requests_are_read(start):
    port, *_ = start()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(2):
        client.request("POST", "/x", iter([b"ab", b"c" * 70_000]), encode_chunked=True)
        assert json.loads(client.getresponse().read())["size"] == 70_002
    client.close()
    head = b"POST /x HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b'"size": 3' in _talk(port, head + b"3;ext=1\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n")
    for wrong in (b"x\r\n", b"-1\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"1" * 2000 + b"\r\n"):
        assert _status(_talk(port, head + wrong)) == 400


def test_curl_waits_for_100_continue_and_is_not_kept(start, tmp_path):
    port, *_ = start(max_body=2_000_000)
    file = tmp_path / "body"
    file.write_bytes(bytes(1_500_000))
    command = ["curl", "-sS", "-m", "30", "-w", "%{http_code}", "--data-binary", f"@{file}"]
    command += ["-H", "Expect: 100-continue", "--expect100-timeout", "25"]
    try:
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}/x"], capture_output=True, text=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("curl is not installed.")
    assert done.stdout.endswith('"size": 1500000}200'), done
    file.write_bytes(bytes(2_500_000))
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/x"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.endswith("413"), done


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET http://elsewhere/ HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + CLOSE + b"\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b" folded: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b"Space : 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + CLOSE + b"X: a\nY: b\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: +1\r\n\r\na", 400),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na", 400),
        (
            b"POST / HTTP/1.1\r\n"
            + CLOSE
            + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Expect: 200-maybe\r\n\r\n", 417),
        (b"POST / HTTP/1.1\r\n" + CLOSE + b"Content-Length: 99999999999\r\n\r\n", 413),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"A" * 200_000, 431),
    ],
)
def test_what_is_wrong_or_ambiguous_is_refused(start, request_, status):
    port, *_ = start()
    answer = _talk(port, request_, half_close=True)
    assert _status(answer) == status
    assert "error" in json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert b"Connection: close" in answer


def test_a_body_that_is_too_large_is_refused_and_the_client_can_read_why(start):
    port, *_ = start(max_body=100_000)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("POST", "/x", bytes(5_000_000))  # all of it, before it reads
    answer = client.getresponse()
    assert answer.status == 413
    assert json.loads(answer.read()) == {"error": "The body may have 100000 bytes"}
    client.close()
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    client.request("POST", "/x", iter([bytes(60_000)] * 2), encode_chunked=True)
    assert client.getresponse().status == 413
    client.close()


def test_requests_are_bounded_together(start):
    port, echo, _ = start(max_body=1_000_000, max_buffered=1_500_000)
    post = b"POST /wait HTTP/1.1\r\n" + CLOSE + b"Content-Length: 1000000\r\n\r\n" + bytes(10**6)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(_talk(port, post)))
    thread.start()
    assert echo.waiting.acquire(timeout=30)
    assert _status(_talk(port, post)) == 503
    echo.go.set()
    thread.join(30)
    assert _status(answers[0]) == 200
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(3):  # what was held is given back, on the same connection too
        client.request("POST", "/x", bytes(10**6))
        answer = client.getresponse()
        assert answer.status == 200
        answer.read()
    client.close()


def test_slow_clients_are_cut_off_and_others_are_served_meanwhile(start):
    port, *_ = start(header_timeout=3.0, body_timeout=3.0, idle_timeout=3.0)
    answers = {}

    def slowly(name, *parts):
        answers[name] = _talk(port, *parts, pause=0.15)

    drip = [bytes([byte]) for byte in b"GET / HTTP/1.1\r\nHost: " + b"a" * 20]
    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n"
    chunks = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    slow = [
        threading.Thread(target=slowly, args=("head", *drip)),
        threading.Thread(target=slowly, args=("body", body, *[b"a"] * 40)),
        threading.Thread(target=slowly, args=("chunks", chunks, *[b"1\r\na\r\n"] * 40)),
        threading.Thread(target=slowly, args=("silent",)),
        threading.Thread(target=slowly, args=("idle", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
    ]
    for thread in slow:
        thread.start()
    served = 0
    while any(thread.is_alive() for thread in slow):
        assert _status(_talk(port, b"GET / HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        served += 1
    assert served
    assert [_status(answers[name]) for name in ("head", "body", "chunks")] == [408] * 3
    assert answers["silent"] == b""
    assert _status(answers["idle"]) == 200


def test_a_client_that_does_not_read_is_cut_off(start):
    port, *_ = start(write_timeout=0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(request * 20_000)


def _working(stack, port, echo, count):
    """Connections whose requests are being worked on."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        client.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert echo.waiting.acquire(timeout=30)
        clients.append(client)
    return clients


def test_requests_are_bounded(start):
    port, echo, _ = start(max_requests=2)
    with contextlib.ExitStack() as stack:
        clients = _working(stack, port, echo, 2)
        answer = _talk(port, b"GET /wait HTTP/1.1\r\n" + CLOSE + b"\r\n")
        assert _status(answer) == 503
        assert b"Too many requests" in answer
        # What takes no time, such as health, is answered.
        assert _status(_talk(port, b"GET /quick HTTP/1.1\r\n" + CLOSE + b"\r\n")) == 200
        echo.go.set()
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_connections_are_bounded_and_idle_ones_make_room(start):
    port, echo, _ = start(max_connections=3)
    quick = b"GET /quick HTTP/1.1\r\n" + CLOSE + b"\r\n"
    with contextlib.ExitStack() as stack:
        (first,) = _working(stack, port, echo, 1)
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(2)
        ]
        assert _status(_talk(port, quick)) == 200
        assert silent[0].recv(10) == b""  # it was idle for longest
        clients = [first, *_working(stack, port, echo, 2)]
        answer = _talk(port, quick)
        assert _status(answer) == 503
        assert b"Too many connections" in answer
        echo.go.set()
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_stopping_answers_what_was_received(start):
    port, echo, server = start()
    with contextlib.ExitStack() as stack:
        connect = lambda: stack.enter_context(  # noqa: E731
            socket.create_connection(("127.0.0.1", port), timeout=30)
        )
        working, idle = connect(), connect()
        working.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        assert echo.waiting.acquire(timeout=30)
        stopping = threading.Thread(target=server.stop, args=(20,))
        stopping.start()
        assert idle.recv(10) == b""  # closed at once
        with pytest.raises(OSError):  # noqa: PT011
            socket.create_connection(("127.0.0.1", port), timeout=5)
        echo.go.set()
        answer = b"".join(iter(lambda: working.recv(1000), b""))
        assert _status(answer) == 200
        assert b"Connection: close" in answer
        stopping.join(30)
        assert not stopping.is_alive()
    server.stop = lambda grace: None
