"""What ``codexctl`` finds by itself: a proxy that holds events back, a daemon of another version."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from codexd.control import wire
from codexd.ctl import units
from codexd.ctl.__main__ import main
from codexd.ctl.verbs import instances, status
from codexd.ctl.verbs.doctor import proxy


def test_a_daemon_of_another_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = wire.StatusReport(
        daemon_version="0.0.1", pid=1, uptime_seconds=5, account=wire.Account(signed_in=True), listeners=["x"],
        streams_open=0, models_listed=1, models_fetched_at=None, client_keys=0, keys_required=False, config="c",
        state_directory="s", draining=False, login=None, usage=None,
    )  # fmt: skip
    status.draw(report)
    assert "restart codexd after an upgrade" in capsys.readouterr().out


@contextmanager
def answering(data: bytes) -> Iterator[str]:
    """A proxy that sends all of this at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(data)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        thread.join()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (STREAM + b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\n", "buffers events"),
        (STREAM, "buffers events"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "status 404 and no stream"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\nhello", "no stream"),
        (b"nonsense\r\n\r\n", "nonsense"),
    ],
)
def test_a_proxy_that_holds_events_back_is_told(data: bytes, said: str) -> None:
    with answering(data) as url:
        check = proxy(url)
    assert (check.outcome, said in check.message) == ("failed", True), check


def test_a_daemon_that_is_silent_is_told_from_one_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "control.sock"
    monkeypatch.setenv("CODEXCTL_SOCKET", str(path))
    monkeypatch.setattr(instances, "PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        assert main(["instances"]) == 0
        assert "not running" in capsys.readouterr().out
        daemon.listen()
        assert main(["instances"]) == 0
    assert "no answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("system/codexd.service", "systemctl restart codexd"),
        ("user/codexd.service", "systemctl --user restart codexd"),
        ("user/default.target.wants/codexd.service", "systemctl --user restart codexd"),
        (None, "not installed as a service. Press Ctrl-C"),
    ],
)
def test_a_restart_is_told_for_the_way_it_was_installed(
    unit: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(units, "SYSTEM_UNITS", (tmp_path / "systemd" / "system",))
    if unit is not None:
        path = tmp_path / "systemd" / unit
        path.parent.mkdir(parents=True)
        path.touch()
    assert main(["restart"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
