"""``codexctl usage``: the account's limits, or what was used through this codexd."""

import argparse
import datetime
import sys
import time
from collections.abc import Sequence

import msgspec

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask, failed, replies
from codexd.state.shares import Share

INTERVAL = 60.0
"""Seconds between two readings of ``--watch``."""

WARNINGS = (50, 75, 90, 100)
"""Percent of a window at which ``--watch`` warns."""

COUNTS = ("requests", "failed", "input", "cached", "output", "reasoning")
"""The counts in each row of the history: fields of ``codexd.telemetry.tokens.Row``."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--by", metavar="COLUMNS", type=_columns, help="group usage by day, model or key (separated by commas)"
    )
    parser.add_argument(
        "--since", metavar="WHEN", type=_since, help="the first day: a duration such as 7d or a date such as 2030-12-31"
    )
    parser.add_argument("--watch", action="store_true", help="show the limits every minute, until Ctrl-C")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")


def _columns(text: str) -> list[str]:
    """Returns the names between commas. Raises ArgumentTypeError."""
    found = [each.strip() for each in text.split(",") if each.strip()]
    if not found or not set(found) <= {"day", "model", "key"}:
        raise argparse.ArgumentTypeError(f'invalid value "{text}": use day, model or key, separated by commas')
    return found


def _since(text: str) -> str:
    """Returns a day such as 2030-12-31; ``7d`` is today and the six days before. Raises ArgumentTypeError."""
    if text[:-1].isdecimal() and text[-1:] == "d" and 0 < int(text[:-1]) < 10_000:
        return (datetime.datetime.now().astimezone().date() - datetime.timedelta(days=int(text[:-1]) - 1)).isoformat()
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        message = f'invalid value "{text}": use a duration such as 7d or a date such as 2030-12-31'
        raise argparse.ArgumentTypeError(message) from error


def run(options: argparse.Namespace, out: Output) -> int:
    if options.watch and (options.by or options.since or options.csv):
        raise failed("usage", "watch", "--watch shows only the limits. Leave out --by, --since and --csv.")
    if options.csv and out.json:
        raise failed("usage", "csv", "Use either --csv or --json, not both.")
    if options.watch:
        return _watch(options, out)
    if options.by is None and options.since is None and not options.csv:
        ask(options, out, wire.Usage(), draw, "Asking ChatGPT")
        return 0
    request = wire.History(since=options.since or "", by=options.by or ["day"])
    if options.csv:
        _csv(options, request)
    else:
        ask(options, out, request, draw_history, "Asking codexd")
    return 0


def _watch(options: argparse.Namespace, out: Output) -> int:
    """Shows the limits until Ctrl-C, with a bell when a window passes one of WARNINGS."""
    warned: dict[str, int] = {}
    while True:
        for reply in replies(options, wire.Usage()):
            if not isinstance(reply, wire.UsageReport):
                continue
            if out.json:
                drawing.plain(msgspec.json.encode(reply).decode())
                continue
            drawing.line(drawing.moment(int(drawing.now())))
            draw(reply)
            for window in reply.windows:
                passed = max((each for each in WARNINGS if window.used_percent >= each), default=0)
                if passed > warned.get(window.label, 0):
                    drawing.note(f"\a{window.used_percent:g} % of the {window.label} window is used.")
                warned[window.label] = passed
        time.sleep(INTERVAL)


def _csv(options: argparse.Namespace, request: wire.History) -> None:
    import csv

    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [*request.by, *COUNTS]
    writer.writerow(columns)
    for reply in replies(options, request):
        if isinstance(reply, wire.HistoryReport):
            writer.writerows([getattr(row, name) for name in columns] for row in reply.rows)


def draw(report: wire.UsageReport) -> None:
    """Draws the limits; a remark says when they are not from the usage page."""
    rows: list[tuple[str, drawing.Drawn]] = [("plan", report.plan or "unknown")]
    if report.credits is not None:
        held = "unlimited" if report.credits.unlimited else report.credits.balance or "0"
        rows.append(("credits", held if report.credits.has_credits or report.credits.unlimited else "none"))
    if report.reached:
        rows.append(("limit", drawing.text(report.reached.replace("_", " "), "bold red")))
    windows = drawing.windows(report) if report.windows else drawing.text("No limits are known.")
    drawing.put(drawing.stack(drawing.grid(rows), drawing.below(windows)))
    if report.why:
        drawing.note(
            f"These limits are from {drawing.ago(report.as_of)}, because the current ones could not be fetched. "
            f"{report.why}"
        )


def draw_history(reply: wire.HistoryReport) -> None:
    """Draws a row for each combination of the columns that were asked for."""
    if not reply.rows:
        drawing.put(f"No requests since {reply.since}." if reply.since else "No requests yet.")
        return
    rows = [
        [
            *(getattr(row, name) or "(no key)" for name in reply.by),
            *(drawing.count(getattr(row, name)) for name in COUNTS),
        ]
        for row in reply.rows
    ]
    table = drawing.table([*reply.by, *COUNTS], rows, right=COUNTS, fold=["reasoning", "cached", "failed"])
    said = "Tokens as ChatGPT counts them. The input includes cached tokens, the output includes reasoning."
    parts: list[drawing.Drawn] = [table, drawing.below(drawing.text(said, "dim"))]
    if reply.shares:
        parts.append(drawing.below(_shares(reply.shares)))
        estimate = "Estimated from how the windows grew between answers."
        parts.append(drawing.text(estimate, "dim"))
    drawing.put(drawing.stack(*parts))


def _shares(shares: Sequence[Share]) -> drawing.Drawn:
    """Returns a row for each key: about how much of each window it has used since that began."""
    columns = [f"of the {share.label} window" for share in shares]
    names = sorted({name for share in shares for name in share.percent})
    rows = [[name or "(no key)", *(f"{share.percent.get(name, 0.0):.1f} %" for share in shares)] for name in names]
    return drawing.table(["key", *columns], rows, right=columns)
