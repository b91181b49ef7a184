"""``codexctl try``: a question, and its answer as it comes."""

import argparse
import base64
import mimetypes
import os
import sys
import time
from pathlib import Path

from codexd.control import wire
from codexd.ctl.verbs import Output, failed, replies

MAX_IMAGES = 20 * 1024 * 1024
"""Bytes of all images, as they are in their files."""

PATIENCE = 1200.0
"""Seconds for the next piece of an answer: codexd itself gives up before."""


def run(options: argparse.Namespace, out: Output) -> int:
    request = wire.Try(
        question=_question(options), model=options.model, effort=options.effort, images=_images(options.image or [])
    )
    begun, first, thinking = time.monotonic(), None, False
    for reply in replies(options, request, timeout=PATIENCE):
        if out.json:
            out.reply(reply)
            continue
        match reply:
            case wire.TryText(thinking=True):
                thinking = True
                _beside(reply.text)
            case wire.TryText():
                if thinking:
                    thinking = False
                    _beside("\n\n")
                first = first or time.monotonic() - begun
                sys.stdout.write(reply.text)
                sys.stdout.flush()
            case wire.TryEnded():
                print(flush=True)  # noqa: T201 - the answer ends its last line
                out.note(_summary(reply, first, time.monotonic() - begun))
            case _:
                out.reply(reply)
    if out.json:
        out.reply(wire.Done())
    return 0


def _beside(text: str) -> None:
    """The summary of the reasoning, apart from the answer, which may be for a pipe."""
    sys.stderr.write(f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text)
    sys.stderr.flush()


def _summary(reply: wire.TryEnded, first: float | None, whole: float) -> str:
    began = "" if first is None else f"first word after {first:.1f} s, "
    cut = "" if reply.finish_reason in ("stop", None) else f" It ended by {reply.finish_reason}."
    return f"{reply.model}: {reply.tokens_in} tokens in, {reply.tokens_out} out, {began}{whole:.1f} s in all.{cut}"


def _question(options: argparse.Namespace) -> str:
    """The words, and what is piped in where they end in a dash, or where there are none. Raises Failed."""
    words = list(options.question)
    piped = not words and not sys.stdin.isatty()
    if words[-1:] == ["-"]:
        words, piped = words[:-1], True
    text = " ".join(words)
    if piped:
        try:
            text = f"{text}\n\n{sys.stdin.buffer.read().decode()}".strip()
        except UnicodeDecodeError as error:
            raise failed("usage", "question", "The standard input is no text in UTF-8.") from error
    if not text.strip():
        raise failed("usage", "question", 'Ask something: codexctl try "why is the sky blue?"')
    return text


def _images(paths: list[str]) -> list[str]:
    """As data URLs. Raises Failed."""
    found, size = [], 0
    for path in paths:
        kind, _ = mimetypes.guess_type(path)
        if kind is None or not kind.startswith("image/"):
            raise failed("usage", "image", f"{path} has no name of an image: .png, .jpg, .gif or .webp are.")
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise failed("usage", "image", f"{path} cannot be read: {error.strerror}.") from error
        size += len(data)
        if size > MAX_IMAGES:
            raise failed("usage", "image", f"The images have more than {MAX_IMAGES // 1024 // 1024} MiB together.")
        found.append(f"data:{kind};base64,{base64.b64encode(data).decode()}")
    return found
