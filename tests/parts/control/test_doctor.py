"""What the doctor says of things that a healthy machine does not show."""

import pytest

from codexd.control import doctor


@pytest.mark.parametrize(
    ("skews", "outcome", "said"),
    [
        ([], "warning", "no server could be reached"),
        ([0.4, -2], "ok", "within 2 s"),
        ([1, 90], "failed", "90 seconds behind"),
        ([-3600], "failed", "3600 seconds ahead"),
    ],
)
def test_a_clock_that_is_wrong_is_told(skews: list[float], outcome: str, said: str) -> None:
    check = doctor.clock_check(skews)
    assert (check.outcome, said in check.message) == (outcome, True)
