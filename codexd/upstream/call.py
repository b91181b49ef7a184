"""One request to the backend, in the forms in which the lanes send it."""

import msgspec

from codexd.protocol.codex import continuation
from codexd.protocol.codex.continuation import Chain
from codexd.protocol.codex.request import UpstreamRequest
from codexd.protocol.raw import role_of
from codexd.telemetry.trace import Timings


class Call:
    """A request to ``/codex/responses``.

    ``key``: the conversation's id as it may stand in a header. ``caller`` separates clients: none continues another's
    conversation. ``lossless``: the client's API carries all items of an answer. ``turn_state``: the backend's, to be
    repeated within a tool loop. ``timings`` is filled in. ``weight``: bytes of what the request was made of.
    """

    def __init__(
        self,
        request: UpstreamRequest,
        key: str,
        *,
        lite: bool,
        caller: str,
        lossless: bool,
        timings: Timings,
        weight: int = 0,
    ) -> None:
        self.request = request
        self.key = key
        self.lite = lite
        self.caller = caller
        self.lossless = lossless
        self.timings = timings
        self.weight = weight
        self._body: bytes | None = None
        self._chain: Chain | None = None
        self.turn_state: str | None = None

    # Not ``cached_property``, which in Python 3.11 has one lock for all calls: the loop would wait for the worker.

    @property
    def body(self) -> bytes:
        """The request as JSON."""
        if self._body is None:
            self._body = msgspec.json.encode(self.request)
        return self._body

    @property
    def chain(self) -> Chain:
        """The request's items, encoded one by one, and their digests."""
        if self._chain is None:
            self._chain = continuation.chain_of(self.request, self.caller)
        return self._chain

    def encode_whole(self) -> None:
        """Makes the body; later it is at hand."""
        self.body  # noqa: B018 - cached

    def encode_items(self) -> None:
        """Makes the encoded items and the digests; later they are at hand."""
        self.chain  # noqa: B018 - cached

    @property
    def new_turn(self) -> bool:
        """Whether the user has said something since the last answer; otherwise the request is part of a tool loop."""
        return any(role_of(item) == "user" for item in self.request.input[self.chain.tail :])

    def replaced(self, request: UpstreamRequest) -> "Call":
        """Returns the same call with another request."""
        return self._with(request, self.timings, lossless=self.lossless)

    def followed(self, request: UpstreamRequest) -> "Call":
        """Returns the call that continues this one within an answer. It has all items, and times of its own."""
        timings = Timings()
        timings.only = self.timings.only
        return self._with(request, timings, lossless=True)

    def _with(self, request: UpstreamRequest, timings: Timings, *, lossless: bool) -> "Call":
        return Call(
            request,
            self.key,
            lite=self.lite,
            caller=self.caller,
            lossless=lossless,
            timings=timings,
            weight=self.weight,
        )
