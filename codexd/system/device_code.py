"""Instructions for a sign-in at a terminal, printed by the daemon and by ``codexctl``."""

import io
import textwrap

from codexd.errors import DEVICE_CODES_OFF_HINT

_QUIET_ZONE = 2


def qr_code(text: str, width: int, *, colour: bool) -> str | None:
    """Returns the text as a QR code of half blocks; None when the terminal is too narrow.

    With colour it is always black on white, because some cameras cannot read an inverted code.
    """
    import segno  # here: this import takes a third of codexctl's start-up time

    code = segno.make(text, error="l", micro=False)
    if code.symbol_size(border=_QUIET_ZONE)[0] > width:
        return None
    out = io.StringIO()
    code.terminal(out, border=_QUIET_ZONE, compact=True)
    lines = out.getvalue().rstrip("\n").split("\n")
    return "\n".join(f"\x1b[97;40m{line}\x1b[0m" if colour else line for line in lines)


def instructions(url: str, user_code: str, minutes: int, *, width: int, colour: bool) -> str:
    """Returns the instructions as plain text. Address and code have their own lines, so a double click selects them."""
    code = qr_code(url, width, colour=colour)
    picture = f"\n{code}\n" if code else ""
    hint = "\n".join(textwrap.wrap(DEVICE_CODES_OFF_HINT, width)) if width else DEVICE_CODES_OFF_HINT
    return f"""
To sign in, open this address on any device:

    {url}
{picture}
and enter this code, within {minutes} minutes:

    {user_code}

{hint}
"""
