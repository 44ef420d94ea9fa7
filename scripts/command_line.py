"""What the scripts share: one line about what is wrong, and how they end."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags


def fail(error: object) -> int:
    """Tells what is wrong; returns the exit code of a command that could do nothing."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def end_at_once(message: str, code: int) -> NoReturn:
    """Tells why the program was stopped, and ends it without Python's clean-up.

    In that, threads of TensorFlow that were stopped in the midst of work can crash the process.
    """
    print(message, flush=True)
    sys.stderr.flush()
    os._exit(code)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags, for `absl.app.run`; wrong ones end the program."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(fail(error))
