import pytest

from codexd.upstream import turn_state
from codexd.upstream.turn_state import TurnStates
from support.calls import call, called, output, said, user

FIRST = call(user("a"))
LOOP = call(user("a"), called(), output())


def test_a_state_is_for_the_rest_of_the_turn() -> None:
    states = TurnStates()
    assert states.find(LOOP) is None
    states.keep(FIRST.chain.digest, "s")
    assert states.find(LOOP) == "s"
    assert states.find(FIRST) is None
    assert states.find(call(user("a"), said("b"), user("c"))) is None, "the user has said something"
    assert states.find(call(user("b"), called(), output())) is None
    assert states.find(call(user("a"), called(), output(), caller="you")) is None


def test_the_oldest_go_first() -> None:
    states = TurnStates()
    states.keep(FIRST.chain.digest, "s")
    for number in range(turn_state.MAX_STATES - 1):
        states.keep(b"%d" % number, "x")
    states.keep(FIRST.chain.digest, "s")
    states.keep(b"one more", "x")
    assert states.find(LOOP) == "s"
    for number in range(turn_state.MAX_STATES):
        states.keep(b"%d" % number, "x")
    assert states.find(LOOP) is None


@pytest.mark.parametrize("odd", ["a\r\nb", "é", "x" * (turn_state.MAX_LENGTH + 1)])
def test_what_cannot_be_a_header_is_not_kept(odd: str) -> None:
    states = TurnStates()
    states.keep(FIRST.chain.digest, odd)
    assert states.find(LOOP) is None
