"""Sign-ins: by device code, by browser, and by a pasted address. One sign-in runs at a time.

    running   | left by                                                                     | to
    ----------|-----------------------------------------------------------------------------|----------
    starting  | the issuer gave a device code, or the browser address is made (``ready``)   | waiting
    waiting   | the user approved; the code is exchanged (``_finish``, shielded)            | signed in
    any       | refused, expired, unreachable, replaced by another method, codexd stopping  | failed

Sign-ins run in the daemon, not in the client that requested them: if the terminal is closed while the user enters the
code, the sign-in continues. ``Logins.run`` runs them; clients that start or join one watch its ``Attempt``.
"""

import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from codexd import errors
from codexd.auth import oauth, pages, store
from codexd.auth.issuer import Issuer, IssuerResponse, IssuerUnreachable
from codexd.auth.oauth import Authorization, Code, Denied, Pending, Stray, TokenResponse
from codexd.auth.session import Session, SignIn
from codexd.config.model import OAuth
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.reasons import reason_of
from codexd.server import loopback

CALL_DEADLINE = 30.0
"""Seconds for one call to the issuer. A poll that takes longer is not lost: the next one gets the same answer."""

_LAST_PAGE = 5.0
"""Seconds for the last page to reach the browser after the sign-in has ended."""

_SECOND_PORT = {1455: 1457}
"""A second port for each configured one. The issuer accepts only these two ports for this public client."""

Method = Literal["device", "browser", "paste"]

log = structlog.get_logger()


class Attempt:
    """One sign-in. ``ready``: ``url`` can be shown, or it failed. ``finished``: ``signed_in`` or ``error`` is set."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.url = ""
        self.user_code: str | None = None
        self.expires_at = 0.0
        self.signed_in: SignIn | None = None
        self.error: ApiError | None = None
        self.ready = trio.Event()
        self.finished = trio.Event()
        self.answered = trio.Event()
        self.answer: Code | Denied | None = None
        self.authorization: Authorization | None = None
        self._scope = trio.CancelScope()
        self._ended_by = errors.login_ended("codexd is stopping")

    def end(self, why: ApiError) -> None:
        """Cancels this sign-in, unless it has finished."""
        self._ended_by = why
        self._scope.cancel()

    def give(self, answer: Code | Denied) -> None:
        """Sets the browser's answer; only the first one counts."""
        if self.answer is None:
            self.answer = answer
            self.answered.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs one sign-in inside; afterwards the attempt is always finished."""
        try:
            with self._scope:
                yield
        except ApiError as error:
            self.settle(error)
        except Exception as error:
            log.error("internal error during a sign-in", exc_info=error)
            self.settle(errors.internal("-"))
        finally:
            self.settle(self._ended_by)

    def settle(self, outcome: SignIn | ApiError) -> None:
        """Sets the outcome; only the first one counts."""
        if self.finished.is_set():
            return
        if isinstance(outcome, ApiError):
            self.error = outcome
            log.warning("sign-in failed", method=self.method, reason=outcome.error.message)
        else:
            self.signed_in = outcome
        self.ready.set()
        self.finished.set()


class Logins:
    """All sign-ins. ``clock`` gives Unix seconds; ``ports`` replaces the configured ports in tests."""

    def __init__(
        self,
        issuer: Issuer,
        session: Session,
        config: OAuth,
        originator: str,
        *,
        clock: Callable[[], float],
        ports: Sequence[int] | None = None,
    ) -> None:
        self._issuer = issuer
        self._session = session
        self._clock = clock
        self._ports = ports
        self._lock = trio.Lock()
        self._wanted, self._asked = trio.open_memory_channel[Attempt](0)
        self.current: Attempt | None = None
        self.configure(config, originator)

    def configure(self, config: OAuth, originator: str) -> None:
        self._config = config
        self._originator = originator

    async def run(self) -> None:
        """Runs the requested sign-ins one after the other. Runs until cancelled."""
        async for attempt in self._asked:
            with attempt.running():
                await (self._device(attempt) if attempt.method == "device" else self._browser(attempt))

    async def start(self, method: Method) -> tuple[Attempt, bool]:
        """Starts or joins a sign-in; returns it when its address can be shown, and whether it was already in progress.

        A sign-in in progress by another method ends: the user has chosen this one. Raises ApiError when it cannot be
        started.
        """
        async with self._lock:
            attempt = self.current
            joined = attempt is not None and not attempt.finished.is_set() and attempt.method == method
            if attempt is None or not joined:
                if attempt is not None:
                    attempt.end(errors.login_ended("another sign-in was started"))
                    await attempt.finished.wait()
                attempt = Attempt(method)
                await self._wanted.send(attempt)
                # Only now: the send may be cancelled, and a sign-in that never runs must not be joined.
                self.current = attempt
        # Outside the lock: if the issuer does not answer, another method can still be started.
        await attempt.ready.wait()
        if attempt.error is not None:
            raise attempt.error
        return attempt, joined

    async def paste(self, address: str) -> None:
        """Takes the address that the browser was sent to. Raises ApiError; the sign-in then continues to wait."""
        attempt = self.current
        if attempt is None or attempt.finished.is_set() or attempt.authorization is None:
            raise errors.no_login()
        found = oauth.callback(oauth.query_of(address), attempt.authorization.state)
        if isinstance(found, Stray):
            raise errors.wrong_callback(found.why)
        attempt.give(found)

    # --- device

    async def _device(self, attempt: Attempt) -> None:
        answer = await self._call(self._issuer.start_device)
        if answer.status != 200:
            why = oauth.refusal(answer.status, answer.body).why
            if answer.status < 500 and answer.status != 429:
                raise errors.device_codes_off(why)
            raise errors.login_unreachable(why)
        try:
            device = oauth.device(answer.body)
        except (msgspec.DecodeError, ValueError) as error:
            raise errors.login_unreachable(f"its answer cannot be read: {reason_of(error)}") from error
        attempt.url, attempt.user_code = self._issuer.verification_url, device.user_code
        attempt.expires_at = self._clock() + oauth.DEVICE_LIFETIME
        attempt.ready.set()
        # The code itself is not logged: a reader of the log could use it to approve a sign-in for another account.
        log.info("device sign-in started", url=attempt.url, seconds=oauth.DEVICE_LIFETIME)
        grant: oauth.DeviceGrant | None = None
        with trio.move_on_after(oauth.DEVICE_LIFETIME):
            grant = await self._poll(device)
        if grant is None:
            raise errors.login_expired(oauth.DEVICE_LIFETIME, "the code")
        await self._finish(attempt, grant.authorization_code, self._issuer.device_redirect_uri, grant.code_verifier)

    async def _poll(self, device: oauth.Device) -> oauth.DeviceGrant:
        interval = device.interval
        while True:
            found = await self._poll_once(device)
            if isinstance(found, Denied):
                raise errors.login_refused(found.why)
            if not isinstance(found, Pending):
                return found
            if found.slower:
                interval += oauth.SLOW_DOWN
            await trio.sleep(interval)

    async def _poll_once(self, device: oauth.Device) -> oauth.DeviceGrant | Pending | Denied:
        try:
            with trio.fail_after(CALL_DEADLINE):
                answer = await self._issuer.poll_device(device)
        except (IssuerUnreachable, trio.TooSlowError) as error:
            # The network may return before the code expires.
            log.info("the sign-in server could not be reached; trying again", reason=str(error) or "no answer in time")
            return Pending(slower=False)
        return oauth.device_poll(answer.status, answer.body)

    # --- browser

    async def _browser(self, attempt: Attempt) -> None:
        listeners, port = ([], 0) if attempt.method == "paste" else await self._listen()
        redirect_uri = self._config.redirect_uri
        if listeners:
            redirect_uri = _with_port(redirect_uri, self._config.local_server_port, port)
        attempt.authorization = oauth.authorization(
            self._issuer.url,
            client_id=self._issuer.client_id,
            redirect_uri=redirect_uri,
            originator=self._originator,
            state=secrets.token_urlsafe(32),
            verifier=secrets.token_urlsafe(64),
        )
        attempt.url = attempt.authorization.url
        attempt.expires_at = self._clock() + self._config.login_timeout
        attempt.ready.set()
        log.info("browser sign-in started", redirect_uri=redirect_uri, seconds=self._config.login_timeout)
        async with trio.open_nursery() as nursery:
            waiter = _Callback(attempt, urlsplit(redirect_uri).path)
            if listeners:
                nursery.start_soon(_serve, waiter, listeners)
            await self._await_browser(attempt, attempt.authorization)
            with trio.move_on_after(_LAST_PAGE):
                await waiter.idle()
            nursery.cancel_scope.cancel()

    async def _await_browser(self, attempt: Attempt, authorization: Authorization) -> None:
        """Settles the attempt in every case; the page in the browser waits for that."""
        try:
            with trio.move_on_after(self._config.login_timeout):
                await attempt.answered.wait()
            match attempt.answer:
                case Code(code):
                    await self._finish(attempt, code, authorization.redirect_uri, authorization.verifier)
                case Denied(why):
                    raise errors.login_refused(why)
                case None:
                    raise errors.login_expired(self._config.login_timeout, "the sign-in (oauth.login_timeout)")
        except ApiError as error:
            attempt.settle(error)

    async def _listen(self) -> tuple[list[trio.SocketListener], int]:
        first = self._config.local_server_port
        ports = self._ports or [first, *([_SECOND_PORT[first]] if first in _SECOND_PORT else [])]
        for port in ports:
            try:
                listeners = await trio.open_tcp_listeners(port, host=self._config.local_server_host)
            except OSError as error:
                log.info("the port for the sign-in redirect is in use", port=port, reason=error.strerror)
                continue
            return listeners, listeners[0].socket.getsockname()[1]
        raise errors.callback_port_in_use([(port, who_listens(port)) for port in ports])

    # --- both

    async def _finish(self, attempt: Attempt, code: str, redirect_uri: str, verifier: str) -> None:
        """Exchanges the code and signs in. Shielded: the code works once, and cancellation must not lose its tokens."""
        with trio.CancelScope(shield=True):
            answer = await self._call(lambda: self._issuer.exchange(code, redirect_uri=redirect_uri, verifier=verifier))
            if answer.status != 200:
                raise errors.login_refused(oauth.refusal(answer.status, answer.body).why)
            try:
                tokens = decoding.decode(answer.body, type=TokenResponse)
            except msgspec.DecodeError as error:
                raise errors.login_unreachable(f"its answer cannot be read: {reason_of(error)}") from error
            if tokens.access_token is None or store.unsendable(tokens) is not None:
                raise errors.login_unreachable("its answer contains no usable access token")
            await self._session.sign_in(tokens)
            attempt.settle(self._session.describe())

    async def _call(self, call: Callable[[], Awaitable[IssuerResponse]]) -> IssuerResponse:
        try:
            with trio.fail_after(CALL_DEADLINE):
                return await call()
        except trio.TooSlowError as error:
            raise errors.login_unreachable(f"no answer within {CALL_DEADLINE:g} seconds") from error
        except IssuerUnreachable as error:
            raise errors.login_unreachable(str(error)) from error


class _Callback:
    """HTTP server at ``redirect_uri`` while a browser sign-in runs."""

    def __init__(self, attempt: Attempt, path: str) -> None:
        self._attempt = attempt
        self._path = path
        self._open = 0
        self._closed = trio.Event()

    async def idle(self) -> None:
        """Waits until no page is being sent."""
        while self._open:
            await self._closed.wait()

    async def handle(self, request: loopback.Request, reply: loopback.Reply) -> None:
        self._open += 1
        try:
            status, page = await self._answer(request)
            await reply.send(status, page, pages.HEADERS)
        finally:
            self._open -= 1
            self._closed.set()
            self._closed = trio.Event()

    async def _answer(self, request: loopback.Request) -> tuple[int, bytes]:
        attempt = self._attempt
        if request.path == "/cancel":
            # The official client sends this to ask an older sign-in to free the port.
            attempt.give(Denied("another program's sign-in needs the port"))
            return 200, pages.failure("Sign-in cancelled", "Another sign-in replaced it.")
        if request.path != self._path or request.method != "GET" or attempt.authorization is None:
            return 404, pages.failure("Page not found", "This address is only used at the end of a sign-in.")
        found = oauth.callback(request.query, attempt.authorization.state)
        if isinstance(found, Stray):
            why = (
                f"This address does not belong to the sign-in in progress: {found.why}. "
                "Use the link that `codexctl login` shows."
            )
            return 400, pages.failure("Wrong sign-in", why)
        attempt.give(found)
        await attempt.finished.wait()
        if attempt.error is not None:
            return 400, pages.failure("Not signed in", attempt.error.error.message)
        return 200, pages.success(attempt.signed_in and attempt.signed_in.email)


async def _serve(waiter: _Callback, listeners: list[trio.SocketListener]) -> None:
    await loopback.serve(waiter.handle, listeners, max_body=0, patience=30)


def _with_port(uri: str, configured: int, port: int) -> str:
    """Returns the redirect URI with the actual port, if it has the configured one."""
    parts = urlsplit(uri)
    if parts.port != configured and configured != 0:
        return uri  # a proxy forwards to this port; its address must be used
    return parts._replace(netloc=f"{parts.hostname}:{port}").geturl()


def who_listens(port: int) -> str | None:
    """Returns the program that listens on an IPv4 port, such as ``codex (process 4711)``; None if not visible."""
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                target = str(link.readlink())
                if target.startswith("socket:[") and target[8:-1] in inodes:
                    process = link.parent.parent
                    return f"{(process / 'comm').read_text().strip()} (process {process.name})"
            except OSError:
                continue
    except (OSError, IndexError, ValueError):
        pass
    return None
