"""Instructions for a sign-in at a terminal, printed by the daemon and by ``codexctl``.

Address and code are what a user must read, so they come last and stay on the screen. The QR code is beside them, or
above them where the terminal is high enough; where neither fits, it is left out.
"""

import io
import shutil
import textwrap
from typing import NamedTuple

from codexd.errors import DEVICE_CODES_OFF_HINT

_QUIET_ZONE = 2
_GAP = 3
"""Columns between the QR code and the text beside it."""

_BELOW = 3
"""Rows that must stay free below the instructions: an empty one, the countdown, and the cursor's."""

_NARROWEST = 30
"""Columns that the text beside the QR code needs, and its address if that is longer."""


class Screen(NamedTuple):
    """The size of a terminal, whether it shows colours, and whether a QR code is wanted (None: if it fits)."""

    columns: int
    rows: int
    colour: bool = True
    qr: bool | None = None

    @classmethod
    def here(cls, *, colour: bool, qr: bool | None = None) -> "Screen":
        """Returns the screen of this process's terminal."""
        size = shutil.get_terminal_size()
        return cls(size.columns, size.lines, colour, qr)


PIPE = Screen(0, 0, colour=False, qr=False)
"""Not a terminal: nothing is wrapped, and there is no QR code."""


def qr_code(text: str, *, colour: bool) -> tuple[list[str], int]:
    """Returns the lines of a QR code of half blocks, and its columns.

    With colour it is always black on white, because some cameras cannot read an inverted code.
    """
    import segno  # here: this import takes a third of codexctl's start-up time

    out = io.StringIO()
    made = segno.make(text, error="l", micro=False)
    made.terminal(out, border=_QUIET_ZONE, compact=True)
    *lines, last = out.getvalue().rstrip("\n").split("\n")
    width = int(made.symbol_size(border=_QUIET_ZONE)[0])
    if not colour:
        return [*lines, last], width
    # An odd number of rows: the lower half of the last line does not belong to the code.
    return [*(f"\x1b[97;40m{line}\x1b[0m" for line in lines), f"\x1b[97m{last}\x1b[0m"], width


def instructions(url: str, user_code: str, minutes: int, screen: Screen) -> str:
    """Returns the instructions. Address and code have their own lines, so a double click selects them."""
    alone = _text(url, user_code, minutes, screen.columns)
    if screen.qr is False:
        return "\n".join(["", *alone, ""])
    code, width = qr_code(url, colour=screen.colour)
    room = screen.columns - width - _GAP
    if room >= max(_NARROWEST, len(url)):
        text = _text(url, user_code, minutes, room, indent="")
        height = max(len(code), len(text))
        if screen.qr or height + _BELOW + 1 <= screen.rows:
            code += [" " * width] * (height - len(code))
            text = [""] * ((height - len(text)) // 2) + text
            text += [""] * (height - len(text))
            beside = [f"{left}{' ' * _GAP}{right}".rstrip() for left, right in zip(code, text, strict=True)]
            return "\n".join(["", *beside, ""])
    if screen.qr or (screen.columns >= width and len(code) + len(alone) + _BELOW + 2 <= screen.rows):
        return "\n".join(["", *code, "", *alone, ""])
    return "\n".join(["", *alone, ""])


def _text(url: str, user_code: str, minutes: int, columns: int, *, indent: str = "    ") -> list[str]:
    """Returns the lines of the text; 0 columns: nothing is wrapped."""

    def wrapped(sentence: str) -> list[str]:
        return textwrap.wrap(sentence, columns) if columns else [sentence]

    return [
        *wrapped(DEVICE_CODES_OFF_HINT),
        "",
        *wrapped("To sign in, open this address on any device:"),
        "",
        f"{indent}{url}",
        "",
        *wrapped(f"Enter this code within {minutes} minutes:"),
        "",
        f"{indent}{user_code}",
    ]
