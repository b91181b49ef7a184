"""How many answers may be made at once: HTTP requests, websocket messages, and each of several choices."""

from collections.abc import Callable

from codexd import errors


class Capacity:
    """Counts answers in progress. ``limit`` returns ``server.max_requests``."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._serving = 0

    def check(self) -> None:
        """Raises ApiError 503 if more are counted than may be."""
        if self._serving > (limit := self._limit()):
            raise errors.too_many_requests(limit)

    def enter(self) -> None:
        """Counts a request, until ``leave``, also one that ``check`` refuses."""
        self._serving += 1

    def more(self, number: int) -> None:
        """Counts more answers of a request, until ``leave``. Raises ApiError 503, and then counts none."""
        self._serving += number
        try:
            self.check()
        except BaseException:
            self._serving -= number
            raise

    def leave(self, number: int) -> None:
        self._serving -= number
