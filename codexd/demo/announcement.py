"""The text that ``codexd`` prints at the start of a demonstration."""

import shutil
import sys
from pathlib import Path

from codexd import __version__
from codexd.config.model import Config


def announce(config: Config, control: Path, base: str) -> None:
    target, where = base, ""
    if base.startswith("unix:"):
        target, where = "http://localhost", f"--unix-socket {base.removeprefix('unix:')} "
    key, header = "any (not required)", ""
    if config.server.client_keys:
        key, header = "one of [server.client_keys]", "-H 'authorization: Bearer YOUR-KEY' "
    curl = f"""curl -N {where}{target}/v1/chat/completions \\
    {header}-H 'content-type: application/json' \\
    -d '{{"model": "gpt-6.1-sol", "stream": true,
         "messages": [{{"role": "user", "content": "Hello, codexd!"}}]}}'"""
    print(  # noqa: T201 - this is what a person runs the demo for
        f"""
codexd {__version__} is running with a simulated ChatGPT.
Nothing leaves this machine.

  Base URL   {target}/v1{f"   (on the socket {base})" if where else ""}
  API key    {key}

Try it in another terminal:

  {curl}

codexctl works too. `codexctl login --device` is approved after some seconds:

  export CODEXCTL_SOCKET={control}
  {_codexctl()} status

Press Ctrl-C to stop it.
""",
        flush=True,
    )


def _codexctl() -> str:
    """Returns the command for codexctl: in a checkout it is beside the interpreter, not on the path."""
    beside = Path(sys.executable).with_name("codexctl")
    if shutil.which("codexctl"):
        return "codexctl"
    return str(beside) if beside.exists() else f"{sys.executable} -m codexd.ctl"
