"""``codexctl reload``: makes codexd read its configuration again."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Reload(), draw, "Reloading")
    return 0


def draw(reply: wire.Reloaded) -> None:
    """Says which keys changed, and which need a restart."""
    changed = ", ".join(reply.changed) or "nothing has changed"
    drawing.line(f"Reloaded {reply.config}: {changed}.")
    if reply.restart:
        drawing.note(f"Restart codexd to apply: {', '.join(reply.restart)}.")
