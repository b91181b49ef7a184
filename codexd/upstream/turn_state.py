"""The backend's turn states: short texts that it gives with an answer and wants back until the user's next words.

The first of a turn stays, whatever lane and connection the rest of the turn takes (observed from the official client).
"""

from codexd.upstream.call import Call

MAX_STATES = 256
MAX_LENGTH = 4096


class TurnStates:
    """The last requests' turn states, by the digest of the input, with which the turn's next request begins."""

    def __init__(self) -> None:
        self._states: dict[bytes, str] = {}

    @property
    def any(self) -> bool:
        return bool(self._states)

    def find(self, call: Call) -> str | None:
        """Returns the state to send; None if there is none, or if the user has said something since."""
        # Digests take a millisecond a megabyte, so none is made where no state is known.
        if not self._states or (before := call.chain.before) is None or call.new_turn:
            return None
        return self._states.get(before)

    def keep(self, digest: bytes, state: str) -> None:
        """Stores what was sent with this input, or was received with its answer."""
        if len(state) > MAX_LENGTH or not (state.isascii() and state.isprintable()):
            return  # it could not be sent as a header
        self._states.pop(digest, None)
        self._states[digest] = state
        if len(self._states) > MAX_STATES:
            del self._states[next(iter(self._states))]
