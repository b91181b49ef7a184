"""``codexctl logout``: revokes the sign-in and deletes it."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Logout(), draw, "Revoking the sign-in")
    return 0


def draw(reply: wire.SignedOut) -> None:
    """Shows what was deleted, and what to do if the revocation failed."""
    if reply.revoked:
        drawing.line("Signed out: the sign-in was revoked and its file was deleted.")
        return
    drawing.line("Signed out: the file was deleted.")
    drawing.note(
        f"The sign-in could not be revoked at the ChatGPT sign-in server ({reply.why}). To be sure, end its "
        "session in ChatGPT, Settings, Security."
    )
