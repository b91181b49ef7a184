"""What codexd tells systemd: that it is ready, and that it is stopping."""

import sdnotify


class Notifier:
    """Messages for ``$NOTIFY_SOCKET``; without one they go nowhere."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={_ascii(status)}")

    def status(self, status: str) -> None:
        """The line that ``systemctl status`` shows."""
        self._send(f"STATUS={_ascii(status)}")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=draining")

    def _send(self, state: str) -> None:
        self._notifier.notify(state)


def _ascii(text: str) -> str:
    # sdnotify encodes Latin-1 and swallows the error when it cannot: the whole message would be lost.
    return text.encode("ascii", "replace").decode().replace("\n", " ")
