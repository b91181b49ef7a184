"""What a person reads who signs in at a terminal, for the daemon's own terminal and for ``codexctl``."""

import io
import textwrap

from codexd.errors import DEVICE_CODES_OFF_HINT

_QUIET_ZONE = 2


def qr_code(text: str, width: int, *, colour: bool) -> str | None:
    """The text as a QR code of half blocks; None when the terminal is too narrow for it.

    With colour it is black on white whatever the terminal's own colours are: not every camera reads an inverted one.
    """
    import segno  # here: it is a third of the time that codexctl needs to start

    code = segno.make(text, error="l", micro=False)
    if code.symbol_size(border=_QUIET_ZONE)[0] > width:
        return None
    out = io.StringIO()
    code.terminal(out, border=_QUIET_ZONE, compact=True)
    lines = out.getvalue().rstrip("\n").split("\n")
    return "\n".join(f"\x1b[97;40m{line}\x1b[0m" if colour else line for line in lines)


def instructions(url: str, user_code: str, minutes: int, *, width: int, colour: bool) -> str:
    """The whole instruction, plain: address and code stand alone on their lines, so that a double click takes them."""
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
