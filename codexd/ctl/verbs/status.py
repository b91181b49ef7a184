"""``codexctl status``: the sign-in, the limits and what the daemon does."""

import argparse

from codexd import __version__
from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import EXIT, Output, ask


def run(options: argparse.Namespace, out: Output) -> int:
    found = ask(options, out, wire.Status(), draw, "Asking codexd")
    signed_in = any(isinstance(reply, wire.StatusReport) and reply.account.signed_in for reply in found)
    return 0 if signed_in else EXIT["signed_out"]


def draw(report: wire.StatusReport) -> None:
    """Draws a table of labels and values, and the limits below it."""
    rows = _account(report.account)
    if report.login:
        rows.append(("sign-in", f"in progress ({report.login}); run `codexctl login` to join it"))
    fetched = f", fetched {drawing.ago(report.models_fetched_at)}" if report.models_fetched_at else ", built in"
    keys = (
        f"{report.client_keys}; clients must send one" if report.keys_required else "none: local programs need no key"
    )
    up = drawing.span(report.uptime_seconds)
    rows += [
        ("models", f"{report.models_listed} listed{fetched}"),
        ("client keys", keys),
        ("requests", f"{report.streams_open} in progress"),
        ("backend", _backend(report)),
        ("listening on", "\n".join(report.listeners)),
        ("daemon", f"codexd {report.daemon_version}, process {report.pid}, up {up}"),
    ]
    rows += [
        ("fault", drawing.text(f"{name}: {why} (see `codexctl log`)", "bold red"))
        for name, why in report.faults.items()
    ]
    if report.draining:
        rows.append(("", drawing.text("stopping: requests in progress may finish", "yellow")))
    if report.daemon_version != __version__:
        skew = f"codexctl is {__version__}: restart codexd after an upgrade (`codexctl restart` shows how)"
        rows.append(("", drawing.text(skew, "yellow")))
    rows.append(("configuration", report.config))
    rows.append(("state", report.state_directory))
    parts: list[drawing.Drawn] = [drawing.grid(rows)]
    if report.usage is not None and report.usage.windows:
        parts.append(drawing.below(drawing.windows(report.usage)))
    drawing.put(drawing.stack(*parts))


def _backend(report: wire.StatusReport) -> str:
    """Returns how requests are sent to the backend."""
    if not report.websockets:
        return report.backend
    return f"{report.backend}; {report.websockets} open, {report.websockets_idle} of them idle"


def _account(account: wire.Account) -> list[tuple[str, drawing.Drawn]]:
    """Returns the rows about the sign-in."""
    rows: list[tuple[str, drawing.Drawn]] = []
    if account.signed_in:
        rows.append(("signed in as", drawing.text(drawing.who(account), "bold green")))
        rows.append(("account", account.account_id or "unknown"))
        rows.append(("access token", _token(account)))
    else:
        why = f" {account.why}." if account.ended else ""
        rows.append(("signed in", drawing.text(f"no.{why} Run `codexctl login`", "bold red")))
    if account.unsaved:
        rows.append(("", drawing.text(drawing.UNSAVED, "red")))
    if account.refresh_failed:
        rows.append(("", drawing.text(f"the last refresh failed: {account.refresh_failed}", "yellow")))
    return rows


def _token(account: wire.Account) -> str:
    valid = f"valid until {drawing.moment(account.expires_at)}" if account.expires_at else "expiry unknown"
    return f"{valid}, refreshed {drawing.ago(account.refreshed_at)}" if account.refreshed_at else valid
