import functools
import inspect
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import settings

from codexd.config.model import Logging
from codexd.lowlevel import workers
from codexd.telemetry.log import configure_logging
from support.codexctl import QUIET, Make, Setup, in_thread, over_simulated
from support.secrets import leaks
from support.upstream import Upstream

# Deadlines of single examples would fail on a loaded machine.
settings.register_profile("suite", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=int(os.environ.get("EXAMPLES", "10000")), print_blob=True)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--accept", action="store_true", help="rewrite the expected sides of transcripts and the README's tables"
    )


TEST_SECONDS = 240.0
"""For one async test: ten times what the slowest takes on an idle machine."""


def pytest_sessionstart() -> None:
    # A shell starts what runs in its background with SIGINT ignored, and the processes of the tests would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tool in [name for mark in item.iter_markers("needs") for name in mark.args]:
            item.add_marker(pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is needed here"))
        # A clock that jumps would jump to this while a thread works; there pytest-timeout has to do.
        if isinstance(item, pytest.Function) and "autojump_clock" not in item.fixturenames:
            item.obj = _bounded(item.obj) if inspect.iscoroutinefunction(item.obj) else item.obj


def _bounded(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(TEST_SECONDS):
            await test(*args, **kwargs)

    return run


@pytest.fixture(autouse=True)
def _no_threads_where_time_jumps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autojump clock does not wait for threads: it would jump while a worker works."""
    if "autojump_clock" in request.fixturenames:
        monkeypatch.setattr(workers, "LARGE", sys.maxsize)


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where every log of the suite goes. At its end none of them may hold a secret."""
    folder = tmp_path_factory.mktemp("logs")
    yield folder
    assert list(leaks(folder)) == []


@pytest.fixture(autouse=True, scope="session")
def _in_process_log(logs: Path) -> Iterator[None]:
    """What runs inside the test process logs as the daemon does, everything, into one file."""
    with (logs / "in-process.log").open("w") as stream:
        configure_logging(Logging(level="debug"), logs, stream=stream, environ={})
        yield
        logging.getLogger().handlers.clear()
        structlog.reset_defaults()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A misbehaving ChatGPT on a loopback port."""
    async with trio.open_nursery() as nursery:
        fake = Upstream()
        await nursery.start(fake.serve)
        yield fake
        nursery.cancel_scope.cancel()


@pytest.fixture
def setup(tmp_path: Path, logs: Path) -> Make:
    """Makes a daemon over a simulated ChatGPT, for this test alone."""
    return functools.partial(over_simulated, tmp_path, logs)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Setup]:
    """A daemon that is signed in, for tests that leave it as it was: no client keys, and the level of its log.

    It starts once. Other tests have made requests through it, and will.
    """
    aliases = {"aliases": {"mine": "gpt-6-sol-high"}}
    with in_thread(tmp_path_factory.mktemp("shared"), logs, logging=QUIET, models=aliases) as it:
        yield it
