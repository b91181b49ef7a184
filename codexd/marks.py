"""When each step of one request to the backend was done: what ``codexctl explain`` and the metrics are made of."""


class Marks:
    """Times are trio's; None for what has not happened. Of several tries the last one counts, but for ``asked``.

    ``ready``: the connection was there already. ``request_id`` is the backend's own, for whoever asks OpenAI about it.
    """

    __slots__ = ("asked", "connected", "first", "head", "ready", "request_id", "resent", "status", "token", "tries")

    def __init__(self) -> None:
        self.tries = 0
        self.resent = False
        self.asked: float | None = None
        self.token: float | None = None
        self.connected: float | None = None
        self.head: float | None = None
        self.first: float | None = None
        self.ready: bool | None = None
        self.status: int | None = None
        self.request_id: str | None = None

    def resend(self) -> bool:
        """Whether it may go out anew because of a connection that had ended; once, and it is counted."""
        again, self.resent = not self.resent, True
        self.tries += again
        return again
