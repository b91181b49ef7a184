"""Replies as a person reads them: tables, bars and colours by rich, none of it when nobody is looking."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from codexd import __version__
from codexd.control import wire
from codexd.ctl import drawing

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


@contextmanager
def spinner(text: Any) -> Iterator[None]:
    with drawing.console(stderr=True).status(text, spinner="dots"):
        yield


def failure(message: str) -> None:
    drawing.console(stderr=True).print(Text("codexctl: ", style="red").append(message, style="default"))


def note(message: str) -> None:
    drawing.console(stderr=True).print(message)


def show(reply: wire.Reply) -> None:  # noqa: C901 - a dispatch table
    """Draw one reply on stdout, remarks on it on stderr."""
    console = drawing.console()
    match reply:
        case wire.Account():
            console.print(_account_line(reply))
        case wire.SignedOut():
            _signed_out(reply)
        case wire.StatusReport():
            drawing.put(console, _status(reply))
        case wire.HealthReport():
            who = "signed in" if reply.signed_in else "signed out: run codexctl login"
            console.print(f"codexd {reply.daemon_version} answers; {who}.")
        case wire.UsageReport():
            drawing.put(console, _usage(reply))
            if reply.why:
                note(f"From the headers of the last answer, {drawing.ago(reply.as_of)}: {reply.why}")
        case wire.ModelsReport():
            drawing.put(console, _models(reply))
            if reply.why:
                note(f"The list could not be refreshed: {reply.why}")
        case wire.KeyAdded():
            note(f"The key {reply.name!r}. It is shown this once and cannot be had again:")
            print(reply.key, flush=True)  # noqa: T201 - alone on stdout, so that a script can take it
        case wire.KeysReport():
            _keys(console, reply)
        case wire.KeyRevoked():
            console.print(f"Revoked {reply.name}.")
            if not reply.required:
                note("That was the last key: every program on this machine can use the API without one now.")
        case wire.Reloaded():
            _reloaded(console, reply)
        case wire.Check():
            _check(console, reply)
        case wire.MetricsText():
            sys.stdout.write(reply.text)
        case wire.LogLine():
            if reply.lost:
                note(f"... {reply.lost} lines went by too fast ...")
            print(reply.line, flush=True)  # noqa: T201 - as it is, whatever its length
        case wire.LevelReport():
            _level(console, reply)
        case wire.PromptsReport():
            _prompts(console, reply)
        case wire.PromptText():
            if reply.source:
                note(f"{reply.name}, from {reply.source}, {drawing.ago(reply.set_at)}, SHA-256 {reply.sha256}")
            print(reply.text, flush=True)  # noqa: T201
        case wire.PromptsWereReset():
            console.print(f"Built in again: {', '.join(reply.names)}." if reply.names else "None was set.")
        case wire.HistoryReport():
            drawing.put(console, _history(reply))
        case _:
            pass  # the sign-in shows its own


# --- the sign-in


def _who(account: wire.Account) -> str:
    name = account.email or account.account_id or "an account without a name"
    return f"{name} ({account.plan})" if account.plan else name


def _account_line(account: wire.Account) -> Text:
    if not account.signed_in:
        return Text(f"Signed out: {account.why}")
    line = Text("Signed in as ").append(_who(account), style="bold")
    if account.expires_at is not None:
        line.append(f"; the access token is good until {drawing.moment(account.expires_at)} and renewed before")
    if account.unsaved:
        line.append("\nThe tokens could not be saved: codexd must not stop before they are.", style="red")
    return line.append("." if not account.unsaved else "")


def _signed_out(reply: wire.SignedOut) -> None:
    console = drawing.console()
    if reply.revoked:
        console.print("Signed out: the sign-in was revoked, and its file deleted.")
        return
    console.print("Signed out: the file is deleted.")
    note(
        f"The sign-in could not be revoked at the issuer ({reply.why}). To be sure, end its session in ChatGPT, "
        "Settings, Security."
    )


# --- status


def _status(report: wire.StatusReport) -> RenderableType:
    account = report.account
    rows: list[tuple[str, RenderableType]] = []
    if account.signed_in:
        rows.append(("signed in as", Text(_who(account), style="bold green")))
        rows.append(("account", account.account_id or "unknown"))
        rows.append(("access token", _token(account)))
    else:
        why = "" if account.why == "Not signed in" else f" {account.why}."
        rows.append(("signed in", Text(f"no.{why} Run codexctl login", style="bold red")))
    if account.unsaved:
        rows.append(("", Text("the tokens could not be saved: codexd must not stop before they are", style="red")))
    if account.refresh_failed:
        rows.append(("", Text(f"the last refresh failed: {account.refresh_failed}", style="yellow")))
    if report.login:
        rows.append(("sign-in", f"under way ({report.login}); codexctl login joins it"))
    fetched = f", fetched {drawing.ago(report.models_fetched_at)}" if report.models_fetched_at else ", built in"
    rows.append(("models", f"{report.models_listed} listed{fetched}"))
    keys = f"{report.client_keys}, one is asked for" if report.keys_required else "none: local programs need no key"
    rows.append(("client keys", keys))
    rows.append(("streams", str(report.streams_open)))
    rows.append(("listening on", "\n".join(report.listeners)))
    rows.append(
        ("daemon", f"codexd {report.daemon_version}, process {report.pid}, up {drawing.span(report.uptime_seconds)}")
    )
    if report.draining:
        rows.append(("", Text("stopping: open streams may finish", style="yellow")))
    if report.daemon_version != __version__:
        skew = f"codexctl is {__version__}: restart codexd after an upgrade"
        rows.append(("", Text(skew, style="yellow")))
    rows.append(("configuration", report.config))
    rows.append(("state", report.state_directory))
    parts: list[RenderableType] = [drawing.grid(rows)]
    if report.usage is not None and report.usage.windows:
        parts.append(Padding(drawing.windows(report.usage), (1, 0, 0, 0)))
    return Group(*parts)


def _token(account: wire.Account) -> str:
    good = f"good until {drawing.moment(account.expires_at)}" if account.expires_at else "says no end"
    return f"{good}, renewed {drawing.ago(account.refreshed_at)}" if account.refreshed_at else good


# --- usage


def _usage(report: wire.UsageReport) -> RenderableType:
    rows: list[tuple[str, RenderableType]] = [("plan", report.plan or "unknown")]
    if report.credits is not None:
        held = "unlimited" if report.credits.unlimited else report.credits.balance or "0"
        rows.append(("credits", held if report.credits.has_credits or report.credits.unlimited else "none"))
    if report.reached:
        rows.append(("limit", Text(report.reached.replace("_", " "), style="bold red")))
    windows: RenderableType = drawing.windows(report) if report.windows else Text("No limits are known.")
    return Group(drawing.grid(rows), Padding(windows, (1, 0, 0, 0)))


# --- models and keys


def _models(report: wire.ModelsReport) -> RenderableType:
    aliases = ["aliases"] if any(model.aliases for model in report.models) else []
    table = drawing.table("model", "efforts", "default", "context", "shape", *aliases)
    table.columns[0].no_wrap = True
    for model in report.models:
        context = f"{model.context_window // 1000}k" if model.context_window else ""
        name = Text(model.name) if model.listed else Text(f"{model.name} *", style="dim")
        cells = [" ".join(model.efforts), model.default_effort or "", context, model.shape]
        table.add_row(name, *cells, *([", ".join(model.aliases)] if aliases else []))
    age = (
        f"Fetched {drawing.ago(report.fetched_at)}."
        if report.fetched_at
        else "Built in: the account's own list is not known."
    )
    hidden = " Those with * work and are not listed to clients." if any(not m.listed for m in report.models) else ""
    return Group(table, Text(f"{age} NAME-EFFORT works for each.{hidden}", style="dim"))


def _keys(console: Console, report: wire.KeysReport) -> None:
    if report.why:
        note(f"{report.why}: no key is accepted. `codexctl keys add NAME` sets the file aside and begins anew.")
    if not report.keys:
        state = "and one is asked for: `codexctl keys add NAME`" if report.required else "local programs need none"
        console.print(f"No client keys; {state}.")
        return
    terms = [", ".join(_terms(key)) for key in report.keys]
    table = drawing.table("name", "made", "last used", "from", *(["limits"] if any(terms) else []))
    for key, term in zip(report.keys, terms, strict=True):
        made = drawing.moment(key.created_at) if key.created_at else ""
        used = drawing.ago(key.last_used_at) if key.last_used_at else "never"
        table.add_row(key.name, made, used, key.source, *([term] if any(terms) else []))
    drawing.put(console, table)


def _terms(key: wire.KeyEntry) -> Iterator[str]:
    limits = key.limits
    if key.strict:
        yield "strict"
    if limits.models:
        yield " ".join(limits.models)
    if limits.requests_per_minute is not None:
        yield f"{limits.requests_per_minute} a minute"
    if limits.concurrent_requests is not None:
        yield f"{limits.concurrent_requests} at once"
    if limits.expires_at is not None:
        over = "expired" if limits.expires_at <= drawing.now() else "until"
        yield f"{over} {drawing.moment(limits.expires_at)}"


def _reloaded(console: Console, reply: wire.Reloaded) -> None:
    changed = ", ".join(reply.changed) or "nothing has changed"
    console.print(f"Reloaded {reply.config}: {changed}.")
    if reply.restart:
        note(f"Not in force before codexd is restarted: {', '.join(reply.restart)}.")


def _prompts(console: Console, reply: wire.PromptsReport) -> None:
    table = drawing.table("for", "characters", "from", "set", "SHA-256")
    table.columns[1].justify = "right"
    for entry in reply.prompts:
        when = drawing.moment(entry.set_at) if entry.set_at is not None else ""
        table.add_row(entry.name, str(entry.size), entry.source or "built in", when, entry.sha256[:12])
    drawing.put(console, table)
    if not reply.in_use:
        note("codex.mode is off: none of them is added to requests.")


def _level(console: Console, reply: wire.LevelReport) -> None:
    back = "" if reply.until is None else f", until {drawing.moment(reply.until)}; then {reply.configured} again"
    console.print(f"codexd logs from {reply.level} on{back}.")


def _history(reply: wire.HistoryReport) -> RenderableType:
    if not reply.rows:
        return Text(f"Nothing was asked for since {reply.since}." if reply.since else "Nothing was asked for yet.")
    counts = ("requests", "failed", "input", "cached", "output", "reasoning")
    table = drawing.table(*reply.by, *counts)
    for column in table.columns[len(reply.by) :]:
        column.justify = "right"
    for row in reply.rows:
        places = [getattr(row, name) or "(no key)" for name in reply.by]
        table.add_row(*places, *(f"{getattr(row, name):,}".replace(",", " ") for name in counts))
    said = "Tokens as ChatGPT counts them: cached ones are part of the input, reasoning of the output."
    return Group(table, Text(said, style="dim"))


def _check(console: Console, check: wire.Check) -> None:
    mark, style = _MARKS[check.outcome]
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, min_width=19)
    table.add_column(overflow="fold")
    table.add_row(Text(mark, style=style), Text(check.name, style="bold"), check.message)
    if check.advice:
        table.add_row("", "", Text(f"→ {check.advice}", style=style))
    drawing.put(console, table)
