"""``codexd``: reads the command line and the configuration, runs the daemon, and returns the exit code."""

import argparse
import faulthandler
import os
import sys
from pathlib import Path
from typing import NoReturn

from codexd import __version__
from codexd.system import support

EX_CONFIG = 78
"""Exit code "configuration error" of sysexits.h, for systemd's RestartPreventExitStatus."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and returns the exit code. Raises SystemExit for --help and wrong usage."""
    if (why := support.unsupported()) is not None:
        return _fail(why, 1)
    # Imported only after the check: Windows has neither pwd nor resource.
    import resource

    from codexd.config import load
    from codexd.errors import CannotStart, ConfigError
    from codexd.system import memory

    parser = argparse.ArgumentParser(
        prog="codexd",
        description="An OpenAI- and Anthropic-compatible API for your own tools, over your ChatGPT account.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration file (TOML, or JSON)")
    parser.add_argument("--check-config", action="store_true", help="read and check the configuration, then exit")
    parser.add_argument("--demo", action="store_true", help="run with a simulated ChatGPT: no account, no network")
    parser.add_argument("--version", action="version", version=f"codexd {__version__}")
    options = parser.parse_args(argv)
    environ = dict(os.environ)
    if options.demo and options.config is None:
        # The demo must not read or change the configuration and state of this machine.
        environ = {
            name: value for name, value in environ.items() if name in ("HOST", "PORT") or name.startswith("CODEXD_")
        }
        options.config = Path(os.devnull)
    sources = load.Sources(options.config, environ)
    try:
        settings, origin = sources.load()
    except ConfigError as error:
        return _fail(f"{error}", EX_CONFIG)
    for place in load.passed_over(options.config, environ):
        print(f"codexd: ignoring {place}: permission denied", file=sys.stderr)  # noqa: T201
    if options.check_config:
        from codexd.system import certificates  # imported here: a start does not need them at once
        from codexd.upstream import proxies

        trusted = certificates.store(environ, settings.backend.ca_file)
        faults = [*proxies.problems(environ), *certificates.problems(trusted)]
        for fault in faults:
            _fail(f"{fault}", EX_CONFIG)
        if not faults:
            print(f"{origin or 'built-in defaults'}: ok")  # noqa: T201
        return EX_CONFIG if faults else 0
    try:
        with memory.lean_imports():
            import trio

            from codexd import daemon
            from codexd.api import quart_app

            if support.untested_versions():
                # Imported with the first websocket otherwise; what does not fit is better told at once.
                quart_app.check()
    except ImportError as error:
        others = ", ".join(support.untested_versions()) or f"{error}"
        return _fail(f"incompatible package: {others}. Reinstall codexd with its dependencies.", 1)
    try:
        # systemd's watchdog ends a process that hangs with SIGABRT; the journal then shows where it hung.
        faulthandler.enable()
        # A core dump would contain all tokens.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        memory.limit_retention()
        if options.demo:
            trio.run(daemon.demo, settings)
        else:
            trio.run(daemon.run, settings, origin, sources)
    except CannotStart as error:
        return _fail(f"{error}", 1)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"codexd: {message}", file=sys.stderr)  # noqa: T201
    return code


def cli() -> NoReturn:
    """Runs the command line of the process and exits."""
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # The terminal is closed; the interpreter's own flush must not fail and change the exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


if __name__ == "__main__":
    cli()
