"""``make pictures``: the pictures of the README, from the demonstration: terminals as SVG, the status page as PNG.

Needs chromium for the page. Run it after a change of what they show, and look at them before they are committed.
"""

import contextlib
import html
import json  # noqa: TID251 - its environment has no msgspec
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pyte

ROOT = Path(__file__).parent.parent.parent
OUT = ROOT / "docs" / "pictures"
COLUMNS, ROWS = 80, 24
CELL, LINE, SIZE = 8.4, 18, 14
"""Pixels: width of a cell, height of a line, size of the font."""

SCHEMES = {
    "light": {"back": "#ffffff", "default": "#16191d", "frame": "#dde1e6", "dim": "#59616b", "black": "#16191d",
              "red": "#b42318", "green": "#1a7f4b", "brown": "#955500", "blue": "#2160c4", "cyan": "#0b7285",
              "magenta": "#862e9c", "white": "#ffffff"},
    "dark": {"back": "#101317", "default": "#eceff3", "frame": "#2b313a", "dim": "#9aa4b0", "black": "#000000",
             "red": "#ff8b7e", "green": "#4cc38a", "brown": "#f0b35a", "blue": "#6ea8fe", "cyan": "#66d9e8",
             "magenta": "#e599f7", "white": "#ffffff"},
}  # fmt: skip
BLOCKS = "█▀▄"
"""Characters of the QR code, drawn as rectangles: in many fonts they would leave gaps."""


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with demo() as (base, environ):
        for _ in range(12):
            ask(base, "Explain structured concurrency in three sentences, please.")
        ask(base, "Hello", model="gpt-nix")
        ask(base, "x" * 9, max_tokens=0)
        terminal("status", ["codexctl", "status"], environ)
        long = " ".join(f"word{number}" for number in range(4000))
        models = ("gpt-6.1-sol", "gpt-5.5", "gpt-6-luna-high")
        running = [start(base, long, model) for model in models]
        time.sleep(1.5)
        terminal("top", ["codexctl", "top"], environ, keep=3)
        page(base)
        for each in running:
            each.kill()
            each.wait()
        subprocess.run([*command("codexctl"), "logout"], env=environ, check=True, capture_output=True)
        terminal("login", ["codexctl", "login", "--device"], environ, keep=1.5)


def command(name: str) -> list[str]:
    """Returns the command of the checkout; its Python is the argument of this program."""
    return [str(Path(sys.argv[1]).absolute()), "-m", {"codexd": "codexd", "codexctl": "codexd.ctl"}[name]]


@contextmanager
def demo() -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the base URL of a demonstration, and the environment in which codexctl finds it."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {"HOME": folder, "PATH": os.environ["PATH"], "PORT": "3000", "LANG": "C.UTF-8"}
        environ["PYTHONPATH"] = str(ROOT)
        with (Path(folder) / "log").open("wb") as log:
            daemon = subprocess.Popen([*command("codexd"), "--demo"], env=environ, stdout=log, stderr=log, cwd=ROOT)
        try:
            until = time.monotonic() + 20
            while "Ctrl-C" not in (said := (Path(folder) / "log").read_text()):
                if time.monotonic() > until or daemon.poll() is not None:
                    sys.exit(f"pictures: the demonstration did not start:\n{said}")
                time.sleep(0.1)
            found = re.search(r"Base URL +(http\S+)/v1", said)
            control = re.search(r"CODEXCTL_SOCKET=(\S+)", said)
            if found is None or control is None:
                sys.exit(f"pictures: the demonstration says nothing of its address:\n{said}")
            yield found[1], environ | {"CODEXCTL_SOCKET": control[1]}
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


def body(text: str, model: str, **options: object) -> bytes:
    asked = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
    return json.dumps(asked | options).encode()


def ask(base: str, text: str, *, model: str = "gpt-6.1-sol", **options: object) -> None:
    request = urllib.request.Request(f"{base}/v1/chat/completions", body(text, model, **options))
    with contextlib.suppress(urllib.error.HTTPError):  # some fail, to be shown among the failures
        urllib.request.urlopen(request).read()


def start(base: str, text: str, model: str) -> subprocess.Popen[bytes]:
    """Starts a request whose answer takes long."""
    words: list[str | bytes] = ["curl", "-sN", f"{base}/v1/chat/completions", "-d"]
    return subprocess.Popen([*words, body(text, model)], stdout=subprocess.DEVNULL)


def terminal(name: str, words: list[str], environ: dict[str, str], *, keep: float = 0) -> None:
    """Runs a command in a terminal and draws its screen, after ``keep`` seconds or at its end."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    stream.feed(f"$ {' '.join(words)}\r\n".encode())
    process, master = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execvpe(sys.argv[1], [*command(words[0]), *words[1:]], environ | {"TERM": "xterm-256color"})
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS - 1, COLUMNS, 0, 0))
    until = time.monotonic() + (keep or 20)
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([master], [], [], left)
        try:
            data = os.read(master, 65536) if ready else b""
        except OSError:
            break
        stream.feed(data)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(master)
    for scheme, colours in SCHEMES.items():
        (OUT / f"{name}-{scheme}.svg").write_text(drawn(screen, colours, f"$ {' '.join(words)}"))


def drawn(screen: pyte.Screen, colours: dict[str, str], title: str) -> str:
    """Returns the screen as SVG. Cells are placed one run at a time; blocks are rectangles, which fonts do not part."""
    rows = max((row + 1 for row in range(ROWS) if screen.display[row].strip()), default=1)
    width, height = COLUMNS * CELL + 24, rows * LINE + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'shape-rendering="crispEdges">',
        f"<title>{html.escape(title)}</title>",
        f'<rect x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="{colours["back"]}" '
        f'stroke="{colours["frame"]}"/>',
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="{SIZE}">',
    ]
    for row in range(rows):
        line = screen.buffer[row]
        column = 0
        while column < COLUMNS:
            cell = line[column]
            end = column + 1
            while end < COLUMNS and style(line[end]) == style(cell) and goes_on(cell.data, line[end].data):
                end += 1
            text = "".join(line[place].data for place in range(column, end))
            parts += run(text, cell, column, row, colours)
            column = end
    return "\n".join([*parts, "</g>", "</svg>", ""])


def goes_on(first: str, other: str) -> bool:
    """Returns whether one rectangle or one text holds both characters."""
    return first == other if first in BLOCKS else other not in BLOCKS


def style(cell: pyte.screens.Char) -> tuple[object, ...]:
    return cell.fg, cell.bg, cell.bold, cell.reverse


def run(text: str, cell: pyte.screens.Char, column: int, row: int, colours: dict[str, str]) -> list[str]:
    x, y = 12 + column * CELL, 12 + row * LINE
    ink = colour(cell.fg, colours, "default")
    found = []
    if cell.bg != "default":
        found.append(rectangle(x, y, len(text) * CELL, LINE, colour(cell.bg, colours, "back")))
    if text[0] in BLOCKS:
        top, high = {"█": (0, 1), "▀": (0, 0.5), "▄": (0.5, 0.5)}[text[0]]
        return [*found, rectangle(x, y + top * LINE, len(text) * CELL, high * LINE, ink)]
    bold = ' font-weight="bold"' if cell.bold else ""
    for words in re.finditer(r"\S+(?: \S+)*", text):  # SVG keeps no row of spaces
        length = f'textLength="{len(words[0]) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
        place = f'x="{x + words.start() * CELL:.1f}" y="{y + LINE - 5:.1f}"'
        found.append(f'<text {place} fill="{ink}"{bold} {length}>{html.escape(words[0])}</text>')
    return found


def rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    # A little wider than the cell: no hair lines between neighbours.
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width + 0.5:.1f}" height="{height + 0.5:.1f}" fill="{fill}"/>'


def colour(name: str, colours: dict[str, str], default: str) -> str:
    if name == "default":
        return colours[default]
    name = name.removeprefix("bright")
    return colours.get(name, f"#{name}" if re.fullmatch(r"[0-9a-f]{6}", name) else colours[default])


def page(base: str) -> None:
    """Draws the status page."""
    if (chromium := shutil.which("chromium")) is None:
        sys.exit("pictures: chromium is needed for the page: apt-get install chromium")
    for scheme in SCHEMES:
        dark = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=760,900",
             *dark, f"--screenshot={OUT}/page-{scheme}.png", f"{base}/"],
            check=True, capture_output=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
