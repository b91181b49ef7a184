"""``codexd --demo`` as a person starts it: the daemon over the simulated ChatGPT."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.daemon import PATIENCE, environment

# A proxy of the environment is not asked: nothing of the demo leaves the machine.
_NO_PROXY = {"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1"}


@contextmanager
def demo(home: Path, log: Path, *, command: list[str] | None = None, **environ: str) -> Iterator[str]:
    """What it says when it is up, its base URL among it; it has to end well too."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command or [sys.executable, "-m", "codexd", "--demo"],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment(home) | _NO_PROXY | {"PORT": "0"} | environ,
            cwd=home,
        )
        try:
            assert process.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            yield said
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=PATIENCE) == 0
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def base_url(said: str) -> str:
    return next(line.split()[-1] for line in said.splitlines() if "Base URL" in line)


def curl_of(said: str) -> str:
    """The command to paste, which has several lines."""
    return said[said.index("  curl ") :].partition("\n\n")[0].strip()
