"""SIGTERM, by which shared machines ask a program to end soon."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupted(BaseException):
    """The program was asked to stop. All that counts is saved, and the same command goes on.

    Not an `Exception`, so that nothing that deals with errors takes it for one.
    """


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Ends what is done inside where SIGTERM finds it, for what can as well be killed.

    Outside the main thread, which alone can listen to signals, nothing is changed.

    Raises:
        Interrupted: SIGTERM came.
    """

    def end(*_) -> None:
        raise Interrupted

    with _answered_by(end):
        yield


@contextlib.contextmanager
def asked() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM has come, for what must be saved first."""
    come = threading.Event()
    with _answered_by(lambda *_: come.set()):
        yield come.is_set


@contextlib.contextmanager
def _answered_by(handler: Callable[..., None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
