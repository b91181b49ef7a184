"""``codexctl top`` and ``codexctl explain``: what codexd does now, and what became of a request."""

import argparse
import sys
import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.verbs import Output, replies
from codexd.telemetry.tokens import Tokens
from codexd.telemetry.trace import Trace

INTERVAL = 1.0
ID_SHOWN = 16
"""Characters of a request's id: enough for ``codexctl explain``."""

_ENDINGS = {None: ("under way", "cyan"), 499: ("the client left", "yellow")}


# --- top


def top(options: argparse.Namespace, out: Output) -> int:
    if out.json or options.once or not sys.stdout.isatty():
        for reply in replies(options, wire.Top()):
            if isinstance(reply, wire.TopReport) and not out.json:
                drawing.put(drawing.console(), screen(reply, {}))
            else:
                out.reply(reply)
        if out.json:
            out.reply(wire.Done())
        return 0
    before: dict[str, tuple[float, int]] = {}
    with Live(console=drawing.console(), screen=True, auto_refresh=False) as live:
        while True:
            for reply in replies(options, wire.Top()):
                if isinstance(reply, wire.TopReport):
                    live.update(screen(reply, before), refresh=True)
                    before = {trace.id: (reply.now, trace.events) for trace in reply.requests}
            time.sleep(INTERVAL)


def screen(report: wire.TopReport, before: dict[str, tuple[float, int]]) -> RenderableType:
    """``before``: when it was looked at last, how many events each had; without that, its average is shown."""
    signed_in = "signed in" if report.signed_in else "signed out: run codexctl login"
    head = Text(f"codexd {report.daemon_version}", style="bold")
    head.append(
        f"  up {drawing.span(report.uptime_seconds)}, {signed_in}, {len(report.requests)} under way, "
        f"{report.finished} in the last day",
        style="default",
    )
    parts: list[RenderableType] = [head]
    if report.usage is not None and report.usage.windows:
        parts.append(Padding(drawing.windows(report.usage), (1, 0, 0, 0)))
    parts.append(Padding(_under_way(report, before), (1, 0, 0, 0)))
    if report.errors:
        table = drawing.table("failed", "request", "model", "key", "status", "why")
        for trace in reversed(report.errors):
            why = f"{trace.error}: {trace.message.partition('. ')[0]}" if trace.message else str(trace.error)
            row = (
                drawing.ago(int(trace.at)),
                trace.id[:ID_SHOWN],
                trace.model or "",
                trace.key or "",
                str(trace.status),
                why,
            )
            table.add_row(*row)
        table.columns[-1].no_wrap = True
        table.columns[-1].overflow = "ellipsis"
        parts.append(table)
    return Group(*parts)


def _under_way(report: wire.TopReport, before: dict[str, tuple[float, int]]) -> RenderableType:
    if not report.requests:
        return Text("Nothing is under way.", style="dim")
    table = drawing.table("request", "model", "key", "age", "first token", "tokens", "a second")
    for column in table.columns[3:]:
        column.justify = "right"
    for trace in report.requests:
        first = "waiting" if trace.spans.first is None else f"{trace.spans.first / 1000:.1f} s"
        name = trace.model or f"{trace.method} {trace.endpoint}"
        rate = f"{_rate(trace, report.now, before):.0f}" if trace.spans.first is not None else ""
        age = drawing.span(report.now - trace.at)
        table.add_row(trace.id[:ID_SHOWN], name, trace.key or "", age, first, f"{trace.events}", rate)
    return table


def _rate(trace: Trace, now: float, before: dict[str, tuple[float, int]]) -> float:
    at, events = before.get(trace.id, (trace.at + (trace.spans.first or 0) / 1000, 0))
    return (trace.events - events) / max(now - at, 0.1)


# --- explain


def explain(options: argparse.Namespace, out: Output) -> int:
    for reply in replies(options, wire.Explain(request=options.request)):
        if isinstance(reply, wire.Explained) and not out.json:
            drawing.put(drawing.console(), explained(reply))
        else:
            out.reply(reply)
    if out.json:
        out.reply(wire.Done())
    return 0


def explained(reply: wire.Explained) -> RenderableType:
    trace = reply.request
    ending, style = _ENDINGS.get(trace.status, (str(trace.status), "green" if trace.error is None else "red"))
    rows: list[tuple[str, RenderableType]] = [
        ("request", Text(trace.id, style="bold")),
        ("came", f"{drawing.moment(int(trace.at))}, {trace.method} {trace.endpoint or '(no such path)'}{_by(trace)}"),
        ("model", trace.model or "none was named that there is"),
        ("answer", f"{'streamed' if trace.streamed else 'whole'}, {trace.events} events of the backend's"),
        ("ended", Text(ending, style=style)),
    ]
    if trace.error is not None:
        rows.append(("error", Text(f"{trace.error}: {trace.message or ''}".rstrip(": "), style="red")))
    if trace.adjusted:
        rows.append(("adjusted", "\n".join(map(_adjustment, trace.adjusted))))
    if trace.tokens is not None:
        rows.append(("tokens", _tokens(trace.tokens)))
    if trace.tries:
        rows.append(("backend", _backend(trace)))
    parts: list[RenderableType] = [drawing.grid(rows), Padding(_times(trace), (1, 0, 0, 0))]
    bodies = [(name, body) for name, body in (("came", trace.body), ("sent", trace.sent)) if body]
    parts += [Padding(Group(Text(name, style="bold"), Text(body)), (1, 0, 0, 0)) for name, body in bodies]
    if not bodies and not reply.bodies:
        parts.append(Text("\nBodies are kept only with logging.enable_request_logging.", style="dim"))
    return Group(*parts)


def _by(trace: Trace) -> str:
    who = f", with the key {trace.key}" if trace.key else ""
    return f"{who}, from {trace.client}" if trace.client else who


_HOW = {
    "dropped": "was left out: the backend does not take it",
    "emulated": "is done here: the backend does not take it",
    "ignored": "has no meaning here",
    "recalled": "came from what codexd remembers of the conversation",
    "shortened": "were shortened, and get their own names back in the answer",
    "added": "was added where the conversation lacked it",
}


def _adjustment(entry: str) -> str:
    name, _, how = entry.partition("=")
    return f"{name} {_HOW.get(how, f'became {how}')}"


def _tokens(tokens: Tokens) -> str:
    return f"{tokens.input} in ({tokens.cached} cached), {tokens.output} out ({tokens.reasoning} of them reasoning)"


def _backend(trace: Trace) -> str:
    status = f"HTTP {trace.backend_status}" if trace.backend_status else "no answer"
    tries = "" if trace.tries == 1 else f", at the {trace.tries}. try"
    name = f"; its own id is {trace.backend_request_id}" if trace.backend_request_id else ""
    return f"{status}{tries}{name}"


def _steps(trace: Trace) -> Iterator[tuple[str, int | None]]:
    spans = trace.spans
    which = {None: "a connection", True: "a connection (one was ready)", False: "a connection (a new one)"}
    yield "read, checked, converted", spans.asked
    yield "an access token", spans.token
    yield which[trace.connection_ready], spans.connected
    yield "the backend's first byte", spans.head
    yield "the first of the answer", spans.first
    yield "the last byte", spans.end


def _times(trace: Trace) -> Table:
    """A line for each step: how long it took, and when it was done."""
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right", style="dim")
    table.add_column()
    done = [(name, at) for name, at in _steps(trace) if at is not None]
    whole = max([at for _, at in done], default=0)
    before = 0
    for name, at in done:
        took = max(0, at - before)
        bar = "█" * round(drawing.BAR * took / whole) if whole else ""
        table.add_row(name, f"{took} ms", f"at {at} ms", Text(bar or "▏", style="cyan"))
        before = max(before, at)
    return table
