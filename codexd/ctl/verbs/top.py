"""``codexctl top``: what codexd does now, once or live."""

import argparse
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, replies, show
from codexd.telemetry.trace import Trace

INTERVAL = 1.0
"""Seconds between two screens."""

ID_SHOWN = 16
"""Characters of a request's id: enough for ``codexctl explain``."""

Seen = dict[str, tuple[float, int]]
"""By the id of a request: when it was seen last, in Unix seconds, and how many events it had then."""

SORTS: dict[str, Callable[[Trace], tuple[float | str, float]]] = {
    "age": lambda trace: (trace.at, 0),
    "tokens": lambda trace: (-trace.events, trace.at),
    "model": lambda trace: (trace.model or "", trace.at),
    "key": lambda trace: (trace.key or "", trace.at),
}
"""The orders of requests in progress: oldest first, most tokens first, by name."""

_NARROW = ("transport", "first token", "per second", "key", "age")
_NARROW_FAILED = ("key", "model", "failed")
"""The columns that a narrow terminal does not show, the first to go first. The ids are always shown."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="show one screen and exit")
    parser.add_argument("--sort", choices=tuple(SORTS), default="age", help="sort order (default: age)")
    parser.add_argument(
        "--filter", metavar="TEXT", default="", help="only requests whose id, model, key or failure contains this text"
    )


class View:
    """What the user has chosen. The keys of the live screen change it."""

    def __init__(self, sort: str, shown: str) -> None:
        self.sort = sort
        self.filter = shown
        self.typing = False
        """The filter is being typed: keys are its letters."""
        self.ended = False

    def press(self, pressed: str) -> None:
        """Applies keys: those of the last line of the screen."""
        for key in pressed:
            if self.typing:
                self._type(key)
            elif key == "\x1b" and self.filter:
                self.filter = ""
            elif key in ("q", "\x1b"):
                self.ended = True
            elif key == "s":
                names = list(SORTS)
                self.sort = names[(names.index(self.sort) + 1) % len(names)]
            elif key == "/":
                self.typing, self.filter = True, ""

    def _type(self, key: str) -> None:
        if key in ("\r", "\n"):
            self.typing = False
        elif key == "\x1b":
            self.typing, self.filter = False, ""
        elif key in ("\x7f", "\b"):
            self.filter = self.filter[:-1]
        elif key.isprintable():
            self.filter += key

    def chosen(self, traces: list[Trace]) -> list[Trace]:
        """Returns the traces that the filter lets through."""
        wanted = self.filter.lower()
        return [
            trace
            for trace in traces
            if any(
                wanted in (each or "").lower()
                for each in (trace.id, trace.model, trace.key, trace.error, trace.message)
            )
        ]

    def keys(self) -> drawing.Drawn:
        """Returns the last line of the live screen."""
        if self.typing:
            return drawing.text(f"filter: {self.filter}▏  Enter: done  Esc: clear", "bold")
        shown = f"  / filter: {self.filter}" if self.filter else "  / filter"
        return drawing.text(f"q quit  s sort: {self.sort}{shown}", "dim")


def run(options: argparse.Namespace, out: Output) -> int:
    """Shows a new screen each second until q or Ctrl-C, or one screen if the output is not a terminal."""
    view = View(options.sort, options.filter)
    if out.json or options.once or not sys.stdout.isatty():
        show(options, out, wire.Top(), lambda report: drawing.put(screen(report, {}, view)))
        return 0
    from rich.live import Live

    before: Seen = {}
    with _keys() as pressed, Live(console=drawing.console(), screen=True, auto_refresh=False) as live:
        while True:
            report = next(reply for reply in replies(options, wire.Top()) if isinstance(reply, wire.TopReport))
            until = time.monotonic() + INTERVAL
            while (left := until - time.monotonic()) > 0:
                live.update(drawing.stack(screen(report, before, view), drawing.below(view.keys())), refresh=True)
                view.press(pressed(left))
                if view.ended:
                    return 0
            before = {trace.id: (report.now, trace.events) for trace in report.requests}


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields a function that waits for keys, for at most this many seconds, and returns them."""
    if not sys.stdin.isatty():

        def none(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield none
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 64).decode(errors="ignore") if ready else ""

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def screen(report: wire.TopReport, before: Seen, view: View) -> drawing.Drawn:
    """Returns one screen. The rates are those since ``before``; those of requests that are not in it are averages."""
    signed_in = "signed in" if report.signed_in else "signed out: run `codexctl login`"
    head = drawing.text(f"codexd {report.daemon_version}", "bold")
    head.append(
        f"  up {drawing.span(report.uptime_seconds)}, {signed_in}, {len(report.requests)} in progress, "
        f"{report.finished} in the last 24 h",
        style="default",
    )
    parts: list[drawing.Drawn] = [head]
    if report.usage is not None and report.usage.windows:
        parts.append(drawing.below(drawing.windows(report.usage)))
    parts.append(drawing.below(_in_progress(report, before, view)))
    if failed := view.chosen(report.errors):
        parts.append(drawing.below(_errors(failed)))
    return drawing.stack(*parts)


def _errors(errors: list[Trace]) -> drawing.Drawn:
    """Returns a row for each failed request, the newest first."""
    rows: list[list[drawing.Drawn]] = []
    for trace in reversed(errors):
        why = f"{trace.error}: {trace.message.partition('. ')[0]}" if trace.message else str(trace.error)
        ago = drawing.ago(int(trace.at))
        rows.append([trace.id[:ID_SHOWN], ago, trace.model or "", trace.key or "", str(trace.status), drawing.Cut(why)])
    return drawing.table(["request", "failed", "model", "key", "status", "why"], rows, fold=_NARROW_FAILED)


def _in_progress(report: wire.TopReport, before: Seen, view: View) -> drawing.Drawn:
    """Returns a row for each request."""
    chosen = sorted(view.chosen(report.requests), key=SORTS[view.sort])
    if not chosen:
        return drawing.text(
            "No matching requests in progress." if report.requests else "No requests in progress.", "dim"
        )
    rows = []
    for trace in chosen:
        waiting = "" if trace.events else "waiting"
        first = waiting if trace.spans.first is None else f"{trace.spans.first / 1000:.1f} s"
        name = trace.model or f"{trace.method} {trace.endpoint}"
        rate = f"{_rate(trace, report.now, before):.0f}" if trace.spans.first is not None else ""
        age = drawing.span(report.now - trace.at)
        sent = {"websocket": "delta" if trace.delta else "websocket", "http": "HTTP", None: ""}[trace.lane]
        rows.append([trace.id[:ID_SHOWN], name, trace.key or "", sent, age, first, f"{trace.events}", rate])
    columns = ["request", "model", "key", "transport", "age", "first token", "tokens", "per second"]
    return drawing.table(columns, rows, right=columns[4:], fold=_NARROW)


def _rate(trace: Trace, now: float, before: Seen) -> float:
    """Returns tokens a second: an event is about one token."""
    at, events = before.get(trace.id, (trace.at + (trace.spans.first or 0) / 1000, 0))
    return (trace.events - events) / max(now - at, 0.1)
