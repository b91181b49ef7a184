"""``codexctl top``: what codexd does now, once or live."""

import argparse
import sys
import time

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


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="show one screen and exit")


def run(options: argparse.Namespace, out: Output) -> int:
    """Shows a new screen each second until Ctrl-C, or one screen if the output is not a terminal."""
    if out.json or options.once or not sys.stdout.isatty():
        show(options, out, wire.Top(), draw)
        return 0
    from rich.live import Live

    before: Seen = {}
    with Live(console=drawing.console(), screen=True, auto_refresh=False) as live:
        while True:
            for reply in replies(options, wire.Top()):
                if isinstance(reply, wire.TopReport):
                    live.update(screen(reply, before), refresh=True)
                    before = {trace.id: (reply.now, trace.events) for trace in reply.requests}
            time.sleep(INTERVAL)


def draw(report: wire.TopReport) -> None:
    """Draws one screen, with the average rate of each request."""
    drawing.put(screen(report, {}))


def screen(report: wire.TopReport, before: Seen) -> drawing.Drawn:
    """Returns one screen. The rates are those since ``before``; those of requests that are not in it are averages."""
    signed_in = "signed in" if report.signed_in else "signed out: run codexctl login"
    head = drawing.text(f"codexd {report.daemon_version}", "bold")
    head.append(
        f"  up {drawing.span(report.uptime_seconds)}, {signed_in}, {len(report.requests)} in progress, "
        f"{report.finished} in the last day",
        style="default",
    )
    parts: list[drawing.Drawn] = [head]
    if report.usage is not None and report.usage.windows:
        parts.append(drawing.below(drawing.windows(report.usage)))
    parts.append(drawing.below(_in_progress(report, before)))
    if report.errors:
        parts.append(_errors(report.errors))
    return drawing.stack(*parts)


def _errors(errors: list[Trace]) -> drawing.Drawn:
    """Returns a row for each failed request, the newest first."""
    table = drawing.table("failed", "request", "model", "key", "status", "why")
    for trace in reversed(errors):
        why = f"{trace.error}: {trace.message.partition('. ')[0]}" if trace.message else str(trace.error)
        ago = drawing.ago(int(trace.at))
        table.add_row(ago, trace.id[:ID_SHOWN], trace.model or "", trace.key or "", str(trace.status), why)
    table.columns[-1].no_wrap = True
    table.columns[-1].overflow = "ellipsis"
    return table


def _in_progress(report: wire.TopReport, before: Seen) -> drawing.Drawn:
    """Returns a row for each request."""
    if not report.requests:
        return drawing.text("No requests in progress.", "dim")
    table = drawing.table("request", "model", "key", "sent by", "age", "first token", "tokens", "per second", right=4)
    for trace in report.requests:
        first = "waiting" if trace.spans.first is None else f"{trace.spans.first / 1000:.1f} s"
        name = trace.model or f"{trace.method} {trace.endpoint}"
        rate = f"{_rate(trace, report.now, before):.0f}" if trace.spans.first is not None else ""
        age = drawing.span(report.now - trace.at)
        sent = {"websocket": "delta" if trace.delta else "websocket", "http": "HTTP", None: ""}[trace.lane]
        table.add_row(trace.id[:ID_SHOWN], name, trace.key or "", sent, age, first, f"{trace.events}", rate)
    return table


def _rate(trace: Trace, now: float, before: Seen) -> float:
    """Returns tokens a second: an event is about one token."""
    at, events = before.get(trace.id, (trace.at + (trace.spans.first or 0) / 1000, 0))
    return (trace.events - events) / max(now - at, 0.1)
