"""What one request, one client and all of them together may cost."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from efficientnet_tf.serve import pictures
from efficientnet_tf.serve.errors import invalid


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server; all of them are on, and each is reported when it is reached.

    Attributes:
        max_body: bytes of a request's content, over REST and gRPC alike.
        max_buffered: bytes of all requests that are being received or answered over REST.
        max_header: bytes of an HTTP request's line and headers.
        max_containers: lists and objects in a request's JSON, each of which costs far more memory
            than the two bytes of its brackets.
        max_pixels: of one picture, read from its first bytes before anything is decoded.
        max_total_pixels: of all pictures in a request.
        max_rows: examples in a request, along the batch.
        max_connections: open at a time, over REST; a new one takes the place of the one that is
            idle for longest.
        max_requests: being worked on at a time, over REST and over gRPC each.
        max_queue: requests that wait for a session.
        header_timeout: seconds from a request's first byte to the end of its headers, and for the
            first byte of a new connection.
        body_timeout: seconds for the content.
        idle_timeout: seconds between the requests of a connection.
        write_timeout: seconds for a client to take what it asked for.
        request_timeout: seconds from the end of a request to its answer.
    """

    max_body: int = 32 * 2**20
    max_buffered: int = 256 * 2**20
    max_header: int = 16 * 2**10
    max_containers: int = 1_000_000
    max_pixels: int = 2**25
    max_total_pixels: int = 2**27
    max_rows: int = 128
    max_connections: int = 512
    max_requests: int = 64
    max_queue: int = 64
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    idle_timeout: float = 60.0
    write_timeout: float = 30.0
    request_timeout: float = 60.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name} must be above 0. Received: {field.name}={value!r}")

    def check_rows(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuses a request with too many examples.

        Raises:
            ServingError: INVALID_ARGUMENT.
        """
        for name, array in inputs.items():
            if array.ndim and array.shape[0] > self.max_rows:
                raise invalid(
                    f'Input "{name}" may have {self.max_rows} rows. Received: {array.shape[0]}.'
                    " Send them in several requests."
                )

    def check_pictures(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Refuses pictures that would take too much memory or time when they are decoded.

        Every string is looked at, and every bytes feature of one that is a `tf.Example`: whatever
        TensorFlow would take for a picture by its first bytes is one. Other strings pass.

        Args:
            inputs: arrays by name; strings are objects of bytes.

        Raises:
            ServingError: INVALID_ARGUMENT, with the input's name and the index in the batch.
        """
        total = 0
        for name, array in inputs.items():
            if array.dtype != object:
                continue
            for index, content in enumerate(array.reshape(-1)):
                try:
                    pixels = self._pixels(content)
                except ValueError as error:
                    raise invalid(f"{name}[{index}]: {error}") from None
                total += pixels
                if total > self.max_total_pixels:
                    raise invalid(
                        f"The pictures of a request may have {self.max_total_pixels} pixels"
                        f" together. Received: {total} up to {name}[{index}]. Send them in several"
                        " requests."
                    )

    def _pixels(self, content: bytes) -> int:
        pixels = 0
        for part in _parts(content):
            size = pictures.size(part)
            if size is None:
                continue
            if size.pixels > self.max_pixels:
                raise ValueError(
                    f"the {size.kind} has {size.width} x {size.height} pixels"
                    f"{f' in {size.frames} frames' if size.frames > 1 else ''}; {self.max_pixels}"
                    " are allowed. Send a smaller picture."
                )
            pixels += size.pixels
        return pixels


# A tf.Example is field 1, length-delimited, and its keys are text; pictures never start so.
_EXAMPLE = re.compile(rb"\A\n")


def _parts(content: bytes):
    """The strings in which a picture may hide: this one, and its features if it is a tf.Example."""
    yield content
    if not _EXAMPLE.match(content):
        return
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2

    try:
        example = example_pb2.Example.FromString(content)
    except DecodeError:
        return
    for feature in example.features.feature.values():
        yield from feature.bytes_list.value
