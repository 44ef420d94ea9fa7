"""Ends a program at a chosen moment: before or after a call of one of the functions watched."""


class Killed(BaseException):
    """As a process that is killed, this runs no handler of errors."""


class Moments:
    """Counts the moments before and after the calls of functions.

    Args:
        patch: a `MonkeyPatch`.
    """

    def __init__(self, patch):
        self._patch, self._count, self._kill = patch, 0, None

    def watch(self, module, name: str, function=None) -> None:
        """Watches a function of a module; `function` takes its place, if given."""
        function = function or getattr(module, name)

        def call(*args, **kwargs):
            self._come()
            result = function(*args, **kwargs)
            self._come()
            return result

        self._patch.setattr(module, name, call)

    def kill_at(self, moment: int) -> None:
        """Counts anew, and raises `Killed` at a moment, counted from 1."""
        self._count, self._kill = 0, moment

    def _come(self) -> None:
        self._count += 1
        if self._count == self._kill:
            raise Killed
