"""What codexctl draws with: consoles, tables, bars and times as a person reads them."""

import datetime
import sys
import time

from rich import box
from rich.console import Console, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from codexd.control import wire

BAR = 24


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich ends the process with 1; main says what it means


def console(*, stderr: bool = False) -> Console:
    # Long lines stay whole in a file or a pipe, where 80 columns mean nothing.
    stream = sys.stderr if stderr else sys.stdout
    return _Console(
        stderr=stderr, highlight=False, emoji=False, markup=False, width=None if stream.isatty() else 10_000
    )


def put(console: Console, drawn: RenderableType) -> None:
    """Without the spaces that fill a table's lines, and its empty first and last one: it may be for a pipe."""
    with console.capture() as capture:
        console.print(drawn)
    lines = [line.rstrip() for line in capture.get().strip("\n").split("\n")]
    sys.stdout.write("\n".join(lines).strip("\n") + "\n")
    sys.stdout.flush()


def grid(rows: list[tuple[str, RenderableType]]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def windows(report: wire.UsageReport) -> Table:
    table = Table.grid(padding=(0, 2))
    for window in report.windows:
        used = window.used_percent
        style = "red" if used >= 90 else "yellow" if used >= 70 else "green"
        name = window.label if window.limit == "codex" else f"{window.limit}, {window.label}"
        bar = ProgressBar(total=100, completed=min(100.0, used), width=BAR, complete_style=style, finished_style=style)
        resets = f"resets {moment(window.resets_at)}, in {until(window.resets_at)}" if window.resets_at else ""
        table.add_row(name, bar, Text(f"{used:g} %", style=style, justify="right"), Text(resets, style="dim"))
    return table


def table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


# --- times


def now() -> float:
    return time.time()  # noqa: TID251 - times for a person


def moment(moment: int | None) -> str:
    """A local time: only the hour today, the day with it within a week."""
    if moment is None:
        return "unknown"
    then = datetime.datetime.fromtimestamp(moment).astimezone()
    today = datetime.datetime.fromtimestamp(now()).astimezone()
    if then.date() == today.date():
        return then.strftime("%H:%M")
    if abs((then.date() - today.date()).days) < 7:
        return then.strftime("%a %H:%M")
    return then.strftime("%Y-%m-%d %H:%M")


def ago(moment: int | None) -> str:
    if moment is None:
        return "never"
    seconds = now() - moment
    return "just now" if seconds < 60 else f"{span(seconds)} ago"


def until(moment: int | None) -> str:
    return "" if moment is None else span(max(0.0, moment - now()))


def span(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
