"""``codexctl try``: a question to a model, and its answer as it comes."""

import argparse
import base64
import mimetypes
import os
import sys
import time
from pathlib import Path

from codexd.control import wire
from codexd.ctl.session import Output, failed, replies

MAX_IMAGES = 20 * 1024 * 1024
"""Bytes of all images, as they are in their files."""

PATIENCE = 1200.0
"""Seconds for the next piece of an answer: longer than the deadline of codexd itself."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "question", metavar="QUESTION", nargs="*", help="the question; - at the end appends standard input"
    )
    parser.add_argument("-m", "--model", metavar="NAME", help="the model (default: the first of `codexctl models`)")
    parser.add_argument("--effort", metavar="EFFORT", help="reasoning effort, such as low, medium or high")
    parser.add_argument("--search", action="store_true", help="let the model search the web")
    parser.add_argument(
        "--draw",
        metavar="FILE",
        help="draw an image, or edit the one given with --image, and save it to this file (PNG)",
    )
    parser.add_argument("--image", metavar="FILE", action="append", help="an image file; may be given more than once")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.draw is not None:
        _check_draw(options)
    request = wire.Try(
        question=_question(options),
        model=options.model,
        effort=options.effort,
        images=_images(options.image or []),
        search=options.search,
        draw=options.draw is not None,
    )
    answer = _Answer(out, options.draw)
    for reply in replies(options, request, timeout=PATIENCE):
        if isinstance(reply, wire.TryImage):
            _save(str(options.draw), reply)
        out.reply(reply, answer.draw)
    out.done()
    return 0


def _check_draw(options: argparse.Namespace) -> None:
    """Raises VerbFailed for what cannot go with ``--draw``."""
    if not options.draw.lower().endswith(".png"):
        raise failed("usage", "image", f'Unsupported image type "{options.draw}". Use a name such as dot.png.')
    if options.search or options.model or options.effort:
        raise failed("usage", "image", "--search, --model and --effort have no effect with --draw. Leave them out.")


class _Answer:
    """Draws the pieces of the answer on the standard output, and the summary of the reasoning beside it."""

    def __init__(self, out: Output, image: str | None) -> None:
        self._out = out
        self._image = image
        self._begun = time.monotonic()
        self._first: float | None = None
        self._thinking = False

    def draw(self, reply: wire.TryText | wire.TryImage | wire.TryEnded) -> None:
        match reply:
            case wire.TryImage():
                print(f"Saved {self._image}.", flush=True)  # noqa: T201
            case wire.TryEnded() if self._image is not None:
                self._out.note(f"{reply.model}: {time.monotonic() - self._begun:.1f} s in total.")
            case wire.TryText(thinking=True):
                self._thinking = True
                _beside(reply.text)
            case wire.TryText():
                if self._thinking:
                    self._thinking = False
                    _beside("\n\n")
                self._first = self._first or time.monotonic() - self._begun
                sys.stdout.write(reply.text)
                sys.stdout.flush()
            case wire.TryEnded():
                print(flush=True)  # noqa: T201 - the answer does not end its last line
                self._out.note(_summary(reply, self._first, time.monotonic() - self._begun))


def _save(path: str, image: wire.TryImage) -> None:
    """Writes an image to its file. Raises VerbFailed."""
    try:
        Path(path).write_bytes(base64.b64decode(image.data))
    except OSError as error:
        raise failed("usage", "image", f"Cannot write {path}: {error.strerror}.") from error


def _beside(text: str) -> None:
    """Writes on the standard error: the answer may go to a pipe."""
    sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text)
    sys.stderr.flush()


def _summary(reply: wire.TryEnded, first: float | None, whole: float) -> str:
    """Returns the model, the tokens and the times; ``first`` and ``whole`` are in seconds."""
    began = "" if first is None else f"first word after {first:.1f} s, "
    cut = "" if reply.finish_reason in ("stop", None) else f" The answer ended early: {reply.finish_reason}."
    return f"{reply.model}: {reply.tokens_in} tokens in, {reply.tokens_out} out, {began}{whole:.1f} s in total.{cut}"


def _question(options: argparse.Namespace) -> str:
    """Returns the words, with what is piped in where they end in a dash or where there are none. Raises VerbFailed."""
    words = list(options.question)
    piped = not words and not sys.stdin.isatty()
    if words[-1:] == ["-"]:
        words, piped = words[:-1], True
    text = " ".join(words)
    if piped:
        try:
            text = f"{text}\n\n{sys.stdin.buffer.read().decode()}".strip()
        except UnicodeDecodeError as error:
            raise failed("usage", "question", "The standard input is not UTF-8 text.") from error
    if not text.strip():
        raise failed("usage", "question", 'Ask something, such as `codexctl try "why is the sky blue?"`.')
    return text


def _images(paths: list[str]) -> list[str]:
    """Returns the files as data URLs. Raises VerbFailed."""
    found, size = [], 0
    for path in paths:
        kind, _ = mimetypes.guess_type(path)
        if kind is None or not kind.startswith("image/"):
            raise failed("usage", "image", f'Unsupported image type "{path}". Use .png, .jpg, .gif or .webp.')
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise failed("usage", "image", f"Cannot read {path}: {error.strerror}.") from error
        size += len(data)
        if size > MAX_IMAGES:
            raise failed("usage", "image", f"The images are larger than {MAX_IMAGES // 1024 // 1024} MiB together.")
        found.append(f"data:{kind};base64,{base64.b64encode(data).decode()}")
    return found
