"""Errors with the codes that TensorFlow Serving answers with."""

# Canonical code -> number in gRPC and in status protos, and status of HTTP as TensorFlow Serving's
# http_rest_api_util / http_server.cc maps them.
CODES = {
    # name                 number  HTTP
    "OK": (0, 200),
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}
_BY_NUMBER = {number: name for name, (number, _) in CODES.items()}


class ServingError(Exception):
    """A request that gets no answer, or a version that is not served, and why.

    Attributes:
        code: canonical name such as "INVALID_ARGUMENT".
        message: for whoever sent the request.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @property
    def number(self) -> int:
        """The code's number in gRPC."""
        return CODES[self.code][0]

    @property
    def http_status(self) -> int:
        """The code's status in HTTP."""
        return CODES[self.code][1]


def invalid(message: str) -> ServingError:
    """Returns the error of a request that is wrong in itself."""
    return ServingError("INVALID_ARGUMENT", message)


def name_of(number: int) -> str:
    """Returns the name of a canonical code, "UNKNOWN" for a number that is none."""
    return _BY_NUMBER.get(number, "UNKNOWN")
