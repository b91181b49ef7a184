"""``codexctl doctor``: the checks that need no daemon, and those of the daemon."""

import argparse
import http.client
import os
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from codexd import __version__
from codexd.config.load import load
from codexd.control import wire
from codexd.control.client import DaemonUnreachable
from codexd.control.wire import Check
from codexd.ctl import drawing
from codexd.ctl.session import EXIT, Output, failed, hint, replies, socket_of
from codexd.errors import ConfigError
from codexd.reasons import reason_of

URL_TIMEOUT = 15.0
"""Seconds for each read of the stream that is checked."""

PULSES_SPREAD = 0.4
"""Seconds between the first and the last of the daemon's test events, when nothing holds them back: 0.75."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deep", action="store_true", help="also make a tiny real request (it counts as usage)")
    parser.add_argument("--url", help="also check that the proxy at this base URL does not buffer streams")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.url is not None and not _is_address(options.url):
        raise failed("usage", "url", f'Invalid URL "{options.url}": use the http or https base URL of the API.')
    found: list[Check] = []
    for check in _checks(options, out):
        out.reply(check, drawing.check)
        found.append(check)
    out.done()
    out.note(_summary(found))
    return next((EXIT[check.kind or "refused"] for check in found if check.outcome == "failed"), 0)


def _summary(found: list[Check]) -> str:
    outcomes = [check.outcome for check in found]
    bad, odd = outcomes.count("failed"), outcomes.count("warning")
    if not bad and not odd:
        return f"All {len(found)} checks passed."
    counts = [(bad, "failed"), (odd, "with a warning"), (len(found) - bad - odd, "passed")]
    return f"{', '.join(f'{count} {what}' for count, what in counts if count)}."


def _is_address(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _checks(options: argparse.Namespace, out: Output) -> Iterator[Check]:
    """Yields the checks as they are done. Raises VerbFailed."""
    try:
        yield from _daemon(options, out)
    except DaemonUnreachable as error:
        advice = hint(error, getattr(options, "instance", None))
        yield Check(name="daemon", outcome="failed", message=str(error), advice=advice, kind="unreachable")
        yield _configuration()
    if options.url:
        with out.waiting("Watching a stream"):
            found = proxy(options.url)
        yield found


def _daemon(options: argparse.Namespace, out: Output) -> Iterator[Check]:
    """Yields the checks of the daemon. Raises VerbFailed and DaemonUnreachable."""
    with out.waiting("Asking codexd"):
        status = next(r for r in replies(options, wire.Status()) if isinstance(r, wire.StatusReport))
    if status.daemon_version == __version__:
        yield Check(name="daemon", outcome="ok", message=f"codexd {__version__} at {socket_of(options)}")
    else:
        yield Check(
            name="daemon",
            outcome="warning",
            message=f"codexd {status.daemon_version} is running, codexctl is {__version__}",
            advice="Restart codexd after an upgrade; `codexctl restart` shows how.",
        )
    found = replies(options, wire.Doctor(deep=options.deep))
    while True:
        with out.waiting("Checking"):
            check = next(found, None)
        if check is None:
            return
        if isinstance(check, Check):
            yield check


def _configuration() -> Check:
    """Checks the configuration of this user; used if no daemon can check its own."""
    try:
        _, origin = load(None, os.environ)
    except ConfigError as error:
        return Check(name="configuration", outcome="failed", message=str(error), advice="Fix the file.", kind="refused")
    return Check(name="configuration", outcome="ok", message=str(origin or "built-in defaults"))


def proxy(url: str) -> Check:
    """Checks whether a proxy at this base URL of the API passes the events of a stream on as they come."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    path = f"{parts.path.rstrip('/').removesuffix('/v1')}/v1/health?stream=1"
    connection = kind(host, parts.port, timeout=URL_TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        if response.status != 200 or not response.getheader("content-type", "").startswith("text/event-stream"):
            advice = "Check that this is the base URL of codexd, with or without /v1. See the proxy's log."
            return _failed(url, f"{path} answered with status {response.status} and no stream", advice)
        times: list[float] = []
        while response.read1(65536):
            times.append(time.monotonic())
    except (OSError, http.client.HTTPException) as error:
        return _failed(
            url,
            reason_of(error) or "no valid HTTP answer",
            "Check the proxy and its certificate.",
        )
    finally:
        connection.close()
    if not times or times[-1] - times[0] < PULSES_SPREAD:
        advice = "In nginx: `proxy_buffering off;` and no gzip for text/event-stream, in the location of codexd."
        return _failed(url, "the proxy buffers events: they arrive all at once", advice)
    return Check(name="proxy", outcome="ok", message=f"{url} passes events on as they arrive")


def _failed(url: str, message: str, advice: str) -> Check:
    return Check(name="proxy", outcome="failed", message=f"{url}: {message}", advice=advice, kind="refused")
