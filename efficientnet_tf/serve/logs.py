"""Logs of one JSON object per line, for people with `jq` and for collectors."""

import json
import logging
import sys
import time

LOGGER = logging.getLogger("efficientnet_tf.serve")


class JsonFormatter(logging.Formatter):
    """Writes a record as one line: time in UTC, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True, default=str)


def log(event: str, *, level: int = logging.INFO, exc_info: bool = False, **fields) -> None:
    """Logs an event, such as "request", with its fields."""
    LOGGER.log(level, "%s", event, extra={"fields": fields}, exc_info=exc_info)


def to_stderr(level: int = logging.INFO) -> None:
    """Sends the server's logs to standard error; until then they go where the program sends its."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    LOGGER.handlers = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False
    # TensorFlow advises in plain lines not to load into a session.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
