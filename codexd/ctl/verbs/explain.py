"""``codexctl explain``: what happened to a request."""

import argparse
from collections.abc import Iterator

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, show
from codexd.telemetry.tokens import Tokens
from codexd.telemetry.trace import Trace

ENDINGS = {None: ("in progress", "cyan"), 499: ("client disconnected", "yellow")}
"""The words and the colour for a status that is not HTTP's."""

ADJUSTED = {
    "dropped": "dropped: the backend does not support it",
    "emulated": "emulated by codexd: the backend does not support it",
    "ignored": "ignored: it has no effect here",
    "recalled": "taken from the stored conversation",
    "shortened": "shortened; the answer has the original names",
    "codexd": "run by codexd, because the model cannot run it",
    "left out": "left out",
    "added": "added, because the conversation did not have it",
}
"""The values in ``Trace.adjusted``, for a parameter or a part of the conversation; any other is its new value."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", metavar="REQUEST-ID", help="its x-request-id, or the beginning of it")


def run(options: argparse.Namespace, out: Output) -> int:
    show(options, out, wire.Explain(request=options.request), draw)
    return 0


def draw(reply: wire.Explained) -> None:
    """Draws a table of labels and values, the time of each step, and the bodies if they are kept."""
    trace = reply.request
    ending, style = ENDINGS.get(trace.status, (str(trace.status), "green" if trace.error is None else "red"))
    rows: list[tuple[str, drawing.Drawn]] = [
        ("request", drawing.text(trace.id, "bold")),
        (
            "received",
            f"{drawing.moment(int(trace.at))}, {trace.method} {trace.endpoint or '(no such path)'}{_by(trace)}",
        ),
        ("model", _model(trace)),
        ("answer", f"{'streamed' if trace.streamed else 'not streamed'}, {trace.events} events from the backend"),
        ("status", drawing.text(ending, style)),
    ]
    if trace.error is not None:
        error = f"{trace.error}: {trace.message or ''}".rstrip(": ")
        rows.append(("error", drawing.text(error, "red")))
    if trace.adjusted:
        rows.append(("adjusted", "\n".join(map(_adjustment, trace.adjusted))))
    if trace.tokens is not None:
        rows.append(("tokens", _tokens(trace.tokens)))
    if trace.tries:
        rows.append(("backend", _backend(trace)))
    if trace.lane is not None:
        rows.append(("sent by", _lane(trace)))
    if trace.hosted_calls:
        rows.append(("searches, images", _hosted(trace)))
    parts: list[drawing.Drawn] = [drawing.grid(rows), drawing.below(_times(trace))]
    bodies = [(name, body) for name, body in (("received", trace.body), ("sent", trace.sent)) if body]
    for name, body in bodies:
        parts.append(drawing.below(drawing.stack(drawing.text(name, "bold"), drawing.text(body))))
    if not bodies and not reply.bodies:
        parts.append(
            drawing.text("\nRequest bodies are logged only if logging.enable_request_logging is on.", style="dim")
        )
    drawing.put(drawing.stack(*parts))


def _by(trace: Trace) -> str:
    who = f", with the key {trace.key}" if trace.key else ""
    return f"{who}, from {trace.client}" if trace.client else who


def _adjustment(entry: str) -> str:
    """Returns an entry such as ``seed=dropped`` in words."""
    name, _, how = entry.partition("=")
    return f"{name} {ADJUSTED.get(how, f'changed to {how}')}"


def _model(trace: Trace) -> str:
    instead = f", instead of {trace.limited_model}, which is at its limit" if trace.limited_model else ""
    return f"{trace.model or 'unknown'}{instead}"


def _tokens(tokens: Tokens) -> str:
    share = f", {tokens.cached / tokens.input:.0%}" if tokens.input else ""
    return f"{tokens.input} in ({tokens.cached} cached{share}), {tokens.output} out ({tokens.reasoning} reasoning)"


def _backend(trace: Trace) -> str:
    status = f"HTTP {trace.backend_status}" if trace.backend_status else "no answer"
    tries = "" if trace.tries == 1 else f", attempt {trace.tries}"
    name = f", request id {trace.backend_request_id}" if trace.backend_request_id else ""
    return f"{status}{tries}{name}"


FALLBACKS = {
    "unsupported": "the backend does not offer websockets at the moment",
    "silent": "the websocket handshake was not answered",
    "refused": "the websocket handshake failed",
    "final": "the backend refused the websocket handshake, and may refuse the request too",
    "failed": "two websockets ended before the answer began",
    "paused": "websockets failed recently; codexd tries them again later",
    "busy": "all websockets are in use (backend.max_connections), or too many were being opened",
    "too large": "too large for a websocket",
}
"""The values of ``Trace.fallback``."""


def _lane(trace: Trace) -> str:
    """Returns how the request was sent, and how much of it."""
    size = f"{trace.sent_bytes / 1024:.1f} KiB"
    if trace.lane == "http":
        why = f": {FALLBACKS.get(trace.fallback, trace.fallback)}" if trace.fallback else ""
        return f"HTTP, {size}{why}"
    which = "the websocket of its conversation" if trace.websocket_kept else "a new websocket"
    return f"{which}, {size}, {'only the new items' if trace.delta else 'the whole conversation'}"


def _hosted(trace: Trace) -> str:
    """Returns how many searches and images codexd made for the answer."""
    failed = f", {trace.hosted_failures} failed" if trace.hosted_failures else ""
    return f"{trace.hosted_calls} by codexd in {trace.hosted_ms} ms{failed}"


def _steps(trace: Trace) -> Iterator[tuple[str, int | None]]:
    """Yields the steps, and the milliseconds from the request to the end of each; None if it was not reached."""
    spans = trace.spans
    which = {None: "connection", True: "connection (reused)", False: "connection (new)"}
    yield "read, checked, converted", spans.asked
    yield "access token", spans.token
    yield which[trace.connection_ready], spans.connected
    yield "first byte from the backend", spans.head
    yield "first token", spans.first
    yield "last byte", spans.end


def _times(trace: Trace) -> drawing.Drawn:
    """Returns a row for each step: how long it took, and when it was done."""
    table = drawing.bare(2)
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
        table.add_row(name, f"{took} ms", f"at {at} ms", drawing.text(bar or "▏", "cyan"))
        before = max(before, at)
    return table
