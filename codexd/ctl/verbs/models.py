"""``codexctl models``: the models of the account."""

import argparse

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.session import Output, ask


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refresh", action="store_true", help="fetch the list from ChatGPT first")


def run(options: argparse.Namespace, out: Output) -> int:
    ask(options, out, wire.Models(refresh=options.refresh), draw, "Asking for the models")
    return 0


def _row(model: wire.ModelEntry) -> list[drawing.Drawn]:
    context = f"{model.context_window // 1000}k" if model.context_window else ""
    name = drawing.text(model.name) if model.listed else drawing.text(f"{model.name} *", "dim")
    aliases = ", ".join(model.aliases)
    return [name, _efforts(model.efforts), model.default_effort or "", context, model.shape, aliases]


def _efforts(efforts: list[str]) -> str:
    """Returns ``low–ultra``: the lowest and the highest effort."""
    return " ".join(efforts) if len(efforts) < 3 else f"{efforts[0]}–{efforts[-1]}"


def draw(report: wire.ModelsReport) -> None:
    """Draws a row for each model; a remark says why a refresh failed."""
    columns = ["model", "efforts", "default", "context", "shape", "aliases"]
    table = drawing.table(columns, map(_row, report.models), fold=["shape", "default", "context", "aliases"])
    age = (
        f"Fetched {drawing.ago(report.fetched_at)}."
        if report.fetched_at
        else "Built-in list; the account's own list is unknown."
    )
    hidden = " * hidden from /v1/models but usable." if any(not m.listed for m in report.models) else ""
    drawing.put(
        drawing.stack(table, drawing.below(drawing.text(f"{age} Use NAME-EFFORT to choose an effort.{hidden}", "dim")))
    )
    if report.why:
        drawing.note(f"The list could not be refreshed: {report.why}")
