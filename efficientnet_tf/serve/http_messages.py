"""Requests and answers of HTTP/1.1, and how a request's head is read (RFC 9112)."""

import dataclasses
import re
from collections.abc import Mapping

MAX_HEADERS = 100
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(r"/[!-~]*")


@dataclasses.dataclass(frozen=True)
class Request:
    """A whole request.

    Attributes:
        method: such as "GET".
        path: of the target, as it was sent, without the query.
        body: its content.
    """

    method: str
    path: str
    body: bytes


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer.

    Attributes:
        status: of HTTP.
        body: its content.
        content_type: of the body.
        headers: further ones.
    """

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class RefusedError(Exception):
    """A request that is answered by an error, after which the connection ends.

    Attributes:
        status: of the answer.
        reason: for the metrics; None for what is no limit.
    """

    def __init__(self, status: int, message: str, reason: str | None = None):
        super().__init__(message)
        self.status = status
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Head:
    """What stands before a request's body.

    Attributes:
        method: such as "GET".
        path: of the target, without the query.
        version: "HTTP/1.0" or "HTTP/1.1".
        headers: by name in lower case.
    """

    method: str
    path: str
    version: str
    headers: Mapping[str, str]

    @property
    def keeps(self) -> bool:
        """Whether the client wants the connection to stay open."""
        wish = self.headers.get("connection", "").lower()
        return "close" not in wish if self.version == "HTTP/1.1" else "keep-alive" in wish


def parse_head(head: bytes) -> Head:
    """Reads a request's line and headers.

    Args:
        head: with the empty line at its end.

    Raises:
        RefusedError: it is not as the RFC wants it, or open to two readings.
    """
    try:
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
    except ValueError:
        raise RefusedError(400, "The first line must be a method, a path and HTTP/1.1") from None
    if not _TOKEN.fullmatch(method) or not _TARGET.fullmatch(target):
        raise RefusedError(400, "The first line must be a method, a path and HTTP/1.1")
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise RefusedError(505, "The version must be HTTP/1.1")
    if len(lines) > MAX_HEADERS:
        raise RefusedError(431, f"There may be {MAX_HEADERS} headers", "header_size")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(r"[\r\n\0]", value):
            raise RefusedError(400, "A header must be a name, a colon and a value")
        name = name.lower()
        if name in headers and name in ("content-length", "transfer-encoding", "host"):
            raise RefusedError(400, f"{name} must be given once")
        headers[name] = value.strip(" \t")
    if version == "HTTP/1.1" and "host" not in headers:
        raise RefusedError(400, "HTTP/1.1 needs the header Host")
    return Head(method, target.partition("?")[0].partition("#")[0], version, headers)
