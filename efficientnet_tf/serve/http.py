"""HTTP/1.1 connections that hostile clients cannot exhaust.

One thread looks after all connections with `asyncio`, so that a slow or silent client costs a few
kilobytes and no thread; complete requests go to a pool of threads. Keep-alive, pipelining, chunked
requests and `Expect: 100-continue` are spoken (RFC 9112); what is ambiguous is refused, since a
proxy may read it otherwise.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import re
import threading
import time
from collections.abc import Callable
from http import HTTPStatus

from efficientnet_tf.serve.http_messages import (
    MAX_HEADERS,
    Head,
    RefusedError,
    Request,
    Response,
    parse_head,
)
from efficientnet_tf.serve.json_tensor import write_error
from efficientnet_tf.serve.limits import Limits
from efficientnet_tf.serve.logs import log
from efficientnet_tf.serve.metrics import Metrics

_CHUNK = 2**16
# Seconds for which the rest of a refused request is read. Closing a connection over unread bytes
# takes the answer back from the client.
_LINGER = 2.0
_LINGER_FULL = 0.2  # when there are too many connections; no more than twice as many wait so
_REASONS = {499: "Client Closed Request"}


@dataclasses.dataclass(eq=False)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: asyncio.Task
    idle: bool = True
    since: float = dataclasses.field(default_factory=time.monotonic)
    buffered: int = 0


class HttpServer:
    """A listening socket and its connections."""

    def __init__(
        self,
        handle: Callable[[Request], Response],
        quick: Callable[[Request], Response | None],
        *,
        limits: Limits,
        metrics: Metrics,
    ):
        """Starts nothing yet.

        Args:
            handle: answers a request, in a thread of a pool; raises nothing.
            quick: answers what takes no time, even when all threads are busy; None for the rest.
            limits: of connections and requests.
            metrics: is told connections and refusals.
        """
        self._handle = handle
        self._quick = quick
        self._limits = limits
        self._metrics = metrics
        self._open: set[_Connection] = set()
        self._buffered = 0
        self._working = 0
        self._stopping = False
        self._loop = asyncio.new_event_loop()
        self._pool = concurrent.futures.ThreadPoolExecutor(limits.max_requests, "serve-rest")
        self._thread = threading.Thread(target=self._run_loop, name="serve-http", daemon=True)
        self._server: asyncio.Server | None = None

    def start(self, host: str, port: int) -> int:
        """Listens, in a thread of its own.

        Args:
            host: address.
            port: 0 for any free one.

        Returns:
            The port.

        Raises:
            OSError: it is taken, or not allowed.
        """
        self._thread.start()
        listening = asyncio.start_server(self._serve, host, port, limit=_CHUNK, backlog=512)
        try:
            self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result()
        except BaseException:
            self._end()
            raise
        return self._server.sockets[0].getsockname()[1]

    def stop(self, grace: float) -> None:
        """Ends it: requests that were received are answered within `grace` seconds."""
        stopping = asyncio.run_coroutine_threadsafe(self._stop(grace), self._loop)
        stopping.result()
        self._end()

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._pool.shutdown(wait=False)

    async def _stop(self, grace: float) -> None:
        self._stopping = True
        # An accepted connection takes some turns of the loop to be in `_open`; asyncio drops it
        # when the server is closed before that.
        for sock in self._server.sockets:
            self._loop.remove_reader(sock.fileno())
        await _turns(10)
        self._server.close()
        await asyncio.sleep(0.1)  # what was sent before may not have been read yet
        for connection in list(self._open):
            if connection.idle:
                connection.task.cancel()
        tasks = [connection.task for connection in self._open]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for connection in list(self._open):
            connection.task.cancel()
            connection.writer.transport.abort()
        left = [connection.task for connection in self._open]
        if left:
            log("requests abandoned", level=logging.WARNING, count=len(left))
            await asyncio.wait(left, timeout=1.0)
        await _turns(10)  # for the sockets to be closed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= 2 * self._limits.max_connections:
            writer.transport.abort()
            return
        connection = _Connection(reader, writer, asyncio.current_task())
        full = len(self._open) >= self._limits.max_connections and not self._make_room()
        self._open.add(connection)
        self._metrics.set("serve_connections", len(self._open))
        try:
            if full:
                self._metrics.count("serve_rejected_total", reason="connections")
                raise RefusedError(503, "Too many connections")
            first = True
            while await self._one(connection, first):
                first = False
            await self._close(writer)
        except RefusedError as error:
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await self._refuse(connection, error, _LINGER_FULL if full else _LINGER)
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.CancelledError):
            pass  # the client went away or is too slow, or the server stops
        except Exception:
            log("connection failed", level=logging.ERROR, exc_info=True)
        finally:
            writer.transport.abort()
            self._uncharge(connection)
            self._open.discard(connection)
            self._metrics.set("serve_connections", len(self._open))

    def _make_room(self) -> bool:
        """Ends the connection that is idle for longest; False when all are busy."""
        idle = [connection for connection in self._open if connection.idle]
        if idle:
            min(idle, key=lambda connection: connection.since).task.cancel()
        return bool(idle)

    async def _one(self, connection: _Connection, first: bool) -> bool:
        """Answers one request; False when there will be no other."""
        limits = self._limits
        reader = connection.reader
        if self._stopping and not first:
            return False
        connection.idle, connection.since = True, time.monotonic()
        wait = limits.header_timeout if first else limits.idle_timeout
        start = await asyncio.wait_for(reader.read(1), wait)
        if not start:
            return False
        connection.idle = False
        head = parse_head(start + await self._rest_of_head(reader))
        began = time.perf_counter()
        try:
            body = await asyncio.wait_for(self._body(connection, head), limits.body_timeout)
        except asyncio.TimeoutError:
            raise RefusedError(408, "The body took too long", "body_timeout") from None
        response = await self._answer(Request(head.method, head.path, body))
        keep = head.keeps and not self._stopping
        await self._write(connection, response, keep=keep, with_body=head.method != "HEAD")
        self._uncharge(connection)
        quiet = response.status == 200 and not head.path.startswith("/v1/")
        log(
            "request",
            level=logging.DEBUG if quiet else logging.INFO,
            method=head.method,
            path=head.path[:200],
            status=response.status,
            ms=round(1000 * (time.perf_counter() - began), 2),
            bytes_in=len(body),
            bytes_out=len(response.body),
            peer=_peer(connection.writer),
        )
        return keep

    async def _rest_of_head(self, reader: asyncio.StreamReader) -> bytes:
        limits = self._limits
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), limits.header_timeout)
        except asyncio.TimeoutError:
            raise RefusedError(408, "The headers took too long", "header_timeout") from None
        except asyncio.LimitOverrunError:
            head = b"." * (limits.max_header + 1)
        if len(head) > limits.max_header:
            message = f"The headers may have {limits.max_header} bytes"
            raise RefusedError(431, message, "header_size")
        return head

    async def _body(self, connection: _Connection, head: Head) -> bytes:
        headers = head.headers
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if coding is not None:
            if length is not None or head.version != "HTTP/1.1":
                raise RefusedError(400, "Transfer-Encoding with Content-Length, or in HTTP/1.0")
            if coding.lower() != "chunked":
                raise RefusedError(501, "Transfer-Encoding must be chunked")
        size = 0
        if length is not None:
            if not re.fullmatch("[0-9]{1,18}", length):
                raise RefusedError(400, "Content-Length must be a number, given once")
            size = int(length)
            if size > self._limits.max_body:
                raise self._too_large()
        expect = headers.get("expect")
        if expect is not None:
            if expect.lower() != "100-continue":
                raise RefusedError(417, "Expect must be 100-continue")
            if size or coding is not None:
                connection.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts: list[bytes] = []
        if coding is None:
            await self._read(connection, size, parts)
        else:
            await self._read_chunks(connection, parts)
        return b"".join(parts)

    async def _read(self, connection: _Connection, size: int, parts: list[bytes]) -> None:
        while size:
            part = await connection.reader.read(min(size, _CHUNK))
            if not part:
                raise EOFError
            size -= len(part)
            self._charge(connection, len(part))
            parts.append(part)

    async def _read_chunks(self, connection: _Connection, parts: list[bytes]) -> None:
        lines = 0
        while True:
            line = await self._line(connection.reader)
            size = line.split(b";")[0].strip(b" \t")
            if not re.fullmatch(b"[0-9A-Fa-f]{1,12}", size):
                raise RefusedError(400, "A chunk's size must be a hexadecimal number")
            count = int(size, 16)
            if not count:
                break
            if connection.buffered + count > self._limits.max_body:
                raise self._too_large()
            await self._read(connection, count, parts)
            if await connection.reader.readexactly(2) != b"\r\n":
                raise RefusedError(400, "A chunk must end with a line break")
        while await self._line(connection.reader):  # trailers, which nobody needs
            lines += 1
            if lines > MAX_HEADERS:
                raise RefusedError(431, "Too many trailers")

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            line = await reader.readuntil(b"\r\n")
        except asyncio.LimitOverrunError:
            line = b"." * _CHUNK
        if len(line) > 1024:
            raise RefusedError(400, "A line of a chunked body may have 1024 bytes")
        return line[:-2]

    def _too_large(self) -> RefusedError:
        message = f"The body may have {self._limits.max_body} bytes"
        return RefusedError(413, message, "body_size")

    def _charge(self, connection: _Connection, size: int) -> None:
        """Counts what is held in memory for a request."""
        if self._buffered + size > self._limits.max_buffered:
            raise RefusedError(503, "Too much is being sent at once. Try again", "buffer")
        connection.buffered += size
        self._buffered += size

    def _uncharge(self, connection: _Connection) -> None:
        self._buffered -= connection.buffered
        connection.buffered = 0

    async def _answer(self, request: Request) -> Response:
        response = self._quick(request)
        if response is not None:
            return response
        if self._working >= self._limits.max_requests:
            self._metrics.count("serve_rejected_total", reason="requests")
            return Response(503, write_error("Too many requests at once. Try again"))
        self._working += 1
        try:
            return await self._loop.run_in_executor(self._pool, self._handle, request)
        finally:
            self._working -= 1

    async def _write(
        self, connection: _Connection, response: Response, *, keep: bool, with_body: bool = True
    ) -> None:
        status = response.status
        reason = _REASONS.get(status) or HTTPStatus(status).phrase
        lines = [
            f"HTTP/1.1 {status} {reason}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            f"Connection: {'keep-alive' if keep else 'close'}",
            "X-Content-Type-Options: nosniff",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        connection.writer.write(head + (response.body if with_body else b""))
        await asyncio.wait_for(connection.writer.drain(), self._limits.write_timeout)

    async def _refuse(self, connection: _Connection, error: RefusedError, linger: float) -> None:
        if error.reason:
            self._metrics.count("serve_rejected_total", reason=error.reason)
        log(
            "refused request",
            level=logging.WARNING,
            status=error.status,
            error=str(error),
            peer=_peer(connection.writer),
        )
        self._uncharge(connection)
        response = Response(error.status, write_error(str(error)))
        await self._write(connection, response, keep=False)
        connection.writer.write_eof()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(connection.reader), linger)
        await self._close(connection.writer)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), self._limits.write_timeout)


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK):
        pass


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def _peer(writer: asyncio.StreamWriter) -> str:
    return str((writer.get_extra_info("peername") or ("",))[0])
