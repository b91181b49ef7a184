"""The instructions of a sign-in on terminals of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.system.device_code import PIPE, Screen, instructions

URL, CODE = "https://auth.openai.com/codex/device", "ABCD-EFGHI"


def shown(screen: Screen, url: str = URL) -> list[str]:
    return instructions(url, CODE, 15, screen).split("\n")


@given(columns=st.integers(40, 200), rows=st.integers(20, 80))
def test_address_and_code_stay_on_the_screen(columns: int, rows: int) -> None:
    """Below them come the countdown and the cursor."""
    lines = shown(Screen(columns, rows, colour=False))
    assert max(map(len, lines)) <= columns
    kept = lines[-(rows - 2) :]
    assert any(URL in line for line in kept) and any(line.endswith(CODE) for line in kept)
    assert len(lines) + 2 <= rows


@pytest.mark.parametrize(("columns", "rows", "qr"), [(80, 24, True), (60, 24, False), (60, 40, True), (80, 18, False)])
def test_the_qr_code_is_shown_where_it_fits(columns: int, rows: int, qr: bool) -> None:
    assert any("▄▄▄▄▄" in line for line in shown(Screen(columns, rows, colour=False))) is qr


def test_the_user_decides() -> None:
    assert not any("▄" in line for line in shown(Screen(200, 80, colour=False, qr=False)))
    assert any("▄" in line for line in shown(Screen(40, 10, colour=False, qr=True)))
    assert any("▄" in line for line in shown(PIPE._replace(qr=True)))
    assert not any("▄" in line for line in shown(PIPE))


def test_a_long_address_is_whole() -> None:
    url = f"https://{'long.' * 20}example/codex/device"
    assert any(line.strip() == url for line in shown(Screen(80, 24, colour=False), url))
