"""``codexctl prompts``: the prompts, by family and by model."""

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.arguments import Parser, actions
from codexd.ctl.session import Output, failed, replies, show


def arguments(parser: Parser) -> None:
    action = actions(parser)
    action("list", "list the prompts and where each came from")
    action("show", "print the current prompt of a family or a model").add_argument("name", metavar="NAME")
    put = action("set", "use a file as the prompt of a family or a model")
    put.add_argument("name", metavar="NAME")
    put.add_argument("file", metavar="FILE", help="a file, or - for standard input")
    reset = action("reset", "restore the built-in prompt of one model or family, or of all")
    reset.add_argument("name", metavar="NAME", nargs="?")
    update = action("update", "use the official prompts of all of the account's models, or of those named")
    update.add_argument("names", metavar="NAME", nargs="*")
    update.add_argument("--diff", action="store_true", help="show how the prompts differ")
    update.add_argument("--yes", action="store_true", help="do not ask for confirmation")


def run(options: argparse.Namespace, out: Output) -> int:
    match options.action:
        case "list":
            show(options, out, wire.PromptsList(), draw)
        case "show":
            show(options, out, wire.PromptsShow(name=options.name), draw_text)
        case "set":
            text, source = _read(options.file)
            show(options, out, wire.PromptsSet(name=options.name, text=text, source=source), draw_set)
        case "reset":
            show(options, out, wire.PromptsReset(name=options.name), draw_reset)
        case _:
            _update(options, out)
    return 0


def _read(name: str) -> tuple[str, str]:
    """Returns the text of a file, or of the standard input for ``-``, and where it came from. Raises VerbFailed."""
    try:
        if name == "-":
            return sys.stdin.buffer.read().decode(), "the standard input"
        path = Path(name)
        return path.read_bytes().decode(), str(path.absolute())
    except OSError as error:
        raise failed("usage", "file", f"Cannot read {name}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise failed("usage", "file", f"{name} is not UTF-8 text.") from error


def _update(options: argparse.Namespace, out: Output) -> None:
    """Shows which official texts differ, and sets them when the user agrees. Raises VerbFailed."""
    with out.waiting("Asking ChatGPT"):
        offered = [reply for reply in replies(options, wire.PromptsOffer()) if isinstance(reply, wire.PromptOffered)]
    if options.names:
        offered = _named(offered, options.names, out)
    elif not offered:
        out.note("The prompts in use are the official ones.")
    if out.json or options.diff:
        for offer in offered:
            out.reply(offer, draw_offer)
    elif offered:
        draw_offers(offered)
    if offered and (options.yes or _agreed(offered, out)):
        for offer in offered:
            request = wire.PromptsSet(name=offer.name, text=offer.text, source=offer.source)
            for _ in replies(options, request):
                out.note(f"Set for {offer.name}; `codexctl prompts reset {offer.name}` undoes it.")
    out.done()


def _named(offered: list[wire.PromptOffered], names: list[str], out: Output) -> list[wire.PromptOffered]:
    """Returns the texts for these models. Raises VerbFailed if there is none for any of them."""
    found = [offer for offer in offered if offer.name in names]
    for name in sorted(set(names) - {offer.name for offer in found}):
        out.note(f"Nothing to update for {name}: its prompt is the official one, or there is none.")
    if not found:
        known = ", ".join(offer.name for offer in offered) or "none"
        raise failed("refused", "no_update", f"Nothing was changed. Models with an update: {known}.")
    return found


def _agreed(offered: list[wire.PromptOffered], out: Output) -> bool:
    """Returns whether the user agrees. Without a terminal, a note says how to set the texts."""
    names = ", ".join(offer.name for offer in offered)
    if out.json or not sys.stdin.isatty():
        out.note(f"Nothing was changed. `codexctl prompts update --yes` sets {names}.")
        return False
    return input(f"Use these prompts for {names}? [y/N] ").strip().lower() in ("y", "yes")


def draw(reply: wire.PromptsReport) -> None:
    """Draws a row for each prompt that is in use."""
    rows = [
        [
            entry.name,
            str(entry.size),
            entry.source or "built in",
            drawing.moment(entry.set_at) if entry.set_at is not None else "",
            entry.sha256[:12],
        ]
        for entry in reply.prompts
    ]
    columns = ["for", "characters", "from", "set", "SHA-256"]
    drawing.put(drawing.table(columns, rows, right=["characters"], fold=["SHA-256", "set"]))
    if not reply.in_use:
        drawing.note("codex.mode is off: no prompt is added to requests.")


def draw_text(reply: wire.PromptText) -> None:
    """Prints the text on the standard output; a remark says where it came from."""
    if reply.source:
        drawing.note(f"{reply.name}, from {reply.source}, {drawing.ago(reply.set_at)}, SHA-256 {reply.sha256}")
    drawing.plain(reply.text)


def draw_set(reply: wire.PromptText) -> None:
    drawing.line(f"Set for {reply.name}, used from the next request; SHA-256 {reply.sha256[:12]}.")


def draw_reset(reply: wire.PromptsWereReset) -> None:
    drawing.line(f"Restored the built-in prompt for {', '.join(reply.names)}." if reply.names else "Nothing to reset.")


def draw_offers(offered: list[wire.PromptOffered]) -> None:
    """Draws how many lines each text gains and loses."""
    rows = []
    for offer in offered:
        lines = list(_difference(offer))[2:]  # without the two names
        more, less = (sum(line.startswith(sign) for line in lines) for sign in "+-")
        rows.append([offer.name, f"+{more}", f"-{less}", str(len(offer.text))])
    drawing.put(
        drawing.table(["for", "added", "removed", "characters"], rows, right=["added", "removed", "characters"])
    )
    drawing.note("--diff shows the lines.")


def _difference(offer: wire.PromptOffered) -> Iterator[str]:
    return difflib.unified_diff(
        offer.before.splitlines(),
        offer.text.splitlines(),
        f"{offer.name} in use",
        f"{offer.name} official",
        lineterm="",
    )


def draw_offer(offer: wire.PromptOffered) -> None:
    """Draws the difference in the format of diff, with colours in a terminal."""
    console = drawing.console()
    styles = {"+": "green", "-": "red", "@": "cyan"}
    for line in _difference(offer):
        console.print(line, style=styles.get(line[:1], ""))
