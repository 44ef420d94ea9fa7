"""What the scripts share: one line about what is wrong, and exit code 2."""

import sys
from collections.abc import Sequence

from absl import flags


def fail(error: object) -> int:
    """Tells what is wrong; returns the exit code of a command that could do nothing."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags, for `absl.app.run`; wrong ones end the program."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(fail(error))
