"""Terminal output of codexctl: consoles, tables, bars, times, and the replies that several verbs show.

rich is imported inside the functions: it takes longer than a verb with ``--json``, which does not need it.
"""

from __future__ import annotations

import datetime
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from codexd.control import wire

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

Drawn: TypeAlias = "RenderableType"
"""What can be drawn: a string, or an object of rich."""

BAR = 24
"""Columns of a bar at its full length."""

SHORTEST = 6
"""Columns of a bar on a narrow terminal."""


# --- consoles


def console(*, stderr: bool = False) -> Console:
    """Returns a console. In a file or a pipe, where 80 columns mean nothing, it does not break lines."""
    import rich.console

    class Pipe(rich.console.Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; __main__ handles it

    stream = sys.stderr if stderr else sys.stdout
    return Pipe(stderr=stderr, highlight=False, emoji=False, markup=False, width=None if stream.isatty() else 10_000)


def line(drawn: Drawn) -> None:
    """Prints on the standard output, in as many lines as the terminal needs."""
    console().print(drawn)


def put(drawn: Drawn) -> None:
    """Prints on the standard output without the spaces and empty lines that rich adds: the output may be a pipe."""
    to = console()
    with to.capture() as capture:
        to.print(drawn)
    lines = [line.rstrip() for line in capture.get().strip("\n").split("\n")]
    sys.stdout.write("\n".join(lines).strip("\n") + "\n")
    sys.stdout.flush()


def plain(shown: str) -> None:
    """Prints a text as it is, whatever its length. A script may read it."""
    print(shown, flush=True)  # noqa: T201


def note(message: str) -> None:
    """Prints a remark on the standard error."""
    console(stderr=True).print(message)


def failure(message: str) -> None:
    """Prints an error on the standard error."""
    console(stderr=True).print(text("codexctl: ", "red").append(message, style="default"))


@contextmanager
def spinner(shown: Any) -> Iterator[None]:
    """Shows a spinner with a text, or with an object with ``__rich__``, which is drawn several times a second."""
    with console(stderr=True).status(shown, spinner="dots"):
        yield


# --- pieces


def text(content: str, style: str = "") -> Text:
    """Returns a text of one style. More can be appended to it."""
    from rich.text import Text

    return Text(content, style=style)


def stack(*parts: Drawn) -> Drawn:
    """Returns the parts, each below the previous one."""
    from rich.console import Group

    return Group(*parts)


def below(part: Drawn) -> Drawn:
    """Returns the part with an empty line before it."""
    from rich.padding import Padding

    return Padding(part, (1, 0, 0, 0))


def bare(spaces: int) -> Table:
    """Returns a table without lines and headings. ``spaces`` separate its columns."""
    from rich.table import Table

    return Table.grid(padding=(0, spaces))


def grid(rows: list[tuple[str, Drawn]]) -> Table:
    """Returns a table of labels and values."""
    made = bare(3)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value)
    return made


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Drawn]], *, fold: Sequence[str] = (), right: Collection[str] = ()
) -> Table:
    """Returns a table with headings; the columns of ``right`` are right-aligned.

    Where the terminal is too narrow, the columns of ``fold`` are left out, in this order, until the others fit; those
    without a value always are. Where that is not enough, texts of several words take several lines.
    """
    cells, width = [list(row) for row in rows], console().width
    for column in fold:
        place = list(columns).index(column)
        if _needed(columns, cells) > width or not any(row[place] for row in cells):
            columns, cells = _without(columns, place), [_without(row, place) for row in cells]
    return _table(columns, cells, right, wrap=_needed(columns, cells) > width)


def _without(row: Sequence[Any], place: int) -> list[Any]:
    return [*row[:place], *row[place + 1 :]]


_BETWEEN = 3
"""Columns of the terminal between two columns of a table."""


def _needed(columns: Sequence[str], rows: list[list[Drawn]]) -> int:
    """Returns the width at which no text is broken; one that may be cut needs its least."""
    widths = [max(map(_width, column)) for column in zip(columns, *rows, strict=True)]
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def _width(cell: Any) -> int:
    from rich.cells import cell_len

    if isinstance(cell, Cut):
        return cell.least
    return cell_len(cell if isinstance(cell, str) else cell.plain)


def _table(columns: Sequence[str], rows: list[list[Drawn]], right: Collection[str], *, wrap: bool) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        may_shrink = wrap or any(isinstance(row[place], Cut) for row in rows)
        justify: Literal["left", "right"] = "right" if column in right else "left"
        made.add_column(column, overflow="fold", no_wrap=not may_shrink, justify=justify)
    for row in rows:
        made.add_row(*row)
    return made


class Cut:
    """A text in a table that takes the room that is left, and is cut where that is too little."""

    LEAST = 16
    """Columns."""

    def __init__(self, content: str) -> None:
        self._content = text(content)
        self._content.no_wrap, self._content.overflow = True, "ellipsis"
        self.least = min(self.LEAST, self._content.cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._content

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        return Measurement(self.least, self._content.cell_len)


# --- replies that several verbs show


def windows(report: wire.UsageReport) -> Table:
    """Returns a bar for each limit of the account: how much is used, and when it resets."""
    from rich.progress_bar import ProgressBar

    columns: list[list[str]] = [[], [], []]
    for window in report.windows:
        name = window.label if window.limit == "codex" else f"{window.limit}, {window.label}"
        resets = f"resets {moment(window.resets_at)}, in {until(window.resets_at)}" if window.resets_at else ""
        for column, shown in zip(columns, (name, f"{window.used_percent:g} %", resets), strict=True):
            column.append(shown)
    gaps, room = 6, console().width
    if (others := sum(max(map(len, column), default=0) for column in columns) + gaps) + SHORTEST > room:
        columns[2] = [f"in {until(window.resets_at)}" if window.resets_at else "" for window in report.windows]
        others = sum(max(map(len, column), default=0) for column in columns) + gaps
    length = max(SHORTEST, min(BAR, room - others))
    made = bare(2)
    for window, name, percent, resets in zip(report.windows, *columns, strict=True):
        used = window.used_percent
        style = "red" if used >= 90 else "yellow" if used >= 70 else "green"
        done = min(100.0, used)
        bar = ProgressBar(total=100, completed=done, width=length, complete_style=style, finished_style=style)
        number = text(percent, style)
        number.justify = "right"
        made.add_row(name, bar, number, text(resets, "dim"))
    return made


def who(account: wire.Account) -> str:
    """Returns the name of the account and its plan."""
    name = account.email or account.account_id or "an unnamed account"
    return f"{name} ({account.plan})" if account.plan else name


UNSAVED = (
    "Tokens could not be written to disk. Do not stop codexd until this is fixed, or you will have to sign in again."
)


def account(reply: wire.Account) -> None:
    """Draws the sign-in as one sentence."""
    if not reply.signed_in:
        line(text(f"{reply.why or 'Signed out'}. Run `codexctl login`."))
        return
    said = text("Signed in as ").append(who(reply), style="bold")
    if reply.expires_at is not None:
        said.append(f"; the access token is valid until {moment(reply.expires_at)} and refreshed before then")
    if reply.unsaved:
        said.append(f".\n{UNSAVED}", style="red")
    line(said if reply.unsaved else said.append("."))


_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


def check(reply: wire.Check) -> None:
    """Draws a check as a line, and its advice as another."""
    mark, style = _MARKS[reply.outcome]
    made = bare(1)
    made.add_column(no_wrap=True)
    made.add_column(no_wrap=True, min_width=19)
    made.add_column(overflow="fold")
    made.add_row(text(mark, style), text(reply.name, "bold"), reply.message)
    if reply.advice:
        made.add_row("", "", text(f"→ {reply.advice}", style))
    put(made)


def reloaded(reply: wire.Reloaded) -> None:
    """Prints which keys changed, and which need a restart."""
    changed = ", ".join(reply.changed) or "nothing has changed"
    line(f"Reloaded {reply.config}: {changed}.")
    if reply.restart:
        note(f"Restart codexd to apply {', '.join(reply.restart)}; `codexctl restart` shows how.")


_LEVELS = {"debug": "dim", "info": "green", "warning": "yellow", "error": "red", "critical": "bold red"}


def log_line(shown: str, level: str) -> None:
    """Prints a line of the log, ``[time] [LEVEL] [request-id] message``, with its level in a colour."""
    made = text(shown)
    fields = re.match(r"(\[\S+\]) \[(\w+)\] (\[\S+\]) ", shown)
    if fields is not None:
        made.stylize("dim", *fields.span(1))
        made.stylize(_LEVELS.get(level, ""), *fields.span(2))
        made.stylize("dim", *fields.span(3))
    console().print(made, soft_wrap=True)
    sys.stdout.flush()


# --- times


def now() -> float:
    """Returns the time in Unix seconds."""
    return time.time()  # noqa: TID251 - times for a person


def moment(moment: int | None) -> str:
    """Returns a local time: only the hour today, with the day of the week within a week, else with the date."""
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
    """Returns how long ago a time was, such as ``5 min ago``."""
    if moment is None:
        return "never"
    seconds = now() - moment
    return "just now" if seconds < 60 else f"{span(seconds)} ago"


def count(number: int) -> str:
    """Returns a number with a space between thousands."""
    return f"{number:,}".replace(",", " ")


def until(moment: int | None) -> str:
    """Returns how long it is until a time, such as ``5 min``."""
    return "" if moment is None else span(max(0.0, moment - now()))


def span(seconds: float) -> str:
    """Returns a duration in its two largest units."""
    minutes = int(seconds // 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
