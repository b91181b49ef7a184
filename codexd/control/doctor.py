"""``codexctl doctor``: checks for common problems, each with advice."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import trio

from codexd.api.chat import probe
from codexd.control.server import Say
from codexd.control.wire import Check, Kind
from codexd.errors import ApiError, ConfigError
from codexd.services import Services, compare
from codexd.system import certificates
from codexd.telemetry.trace import Lane
from codexd.upstream.proxies import BadProxy
from codexd.upstream.tunnel import CannotConnect

REACH_DEADLINE = 15.0
DEEP_DEADLINE = 90.0
MAX_SKEW = 60.0
"""Seconds by which the clock may differ from the servers'. Tokens are refreshed five minutes before they expire."""


async def examine(services: Services, say: Say, *, deep: bool) -> None:
    """Sends one ``Check`` after the other. ``deep`` also makes a real request."""
    for check in [*_configuration(services), *_files(services)]:
        await say(check)
    skews: list[float] = []
    for check in _network(services):
        await say(check)
    for name, url in (("sign-in server", services.issuer.url), ("backend", services.config.current.backend.url)):
        await _reach(services, name, url, say, skews)
    await say(clock_check(skews))
    if await _token(services, say):
        await _account(services, say)
        await _models(services, say)
        if deep:
            await _deep(services, say)


def _ok(name: str, message: str) -> Check:
    return Check(name=name, outcome="ok", message=message)


def _warning(name: str, message: str, advice: str) -> Check:
    return Check(name=name, outcome="warning", message=message, advice=advice)


def _failed(name: str, message: str, advice: str, kind: Kind = "refused") -> Check:
    return Check(name=name, outcome="failed", message=message, advice=advice, kind=kind)


def _configuration(services: Services) -> Iterator[Check]:
    try:
        wanted, origin = services.config.load()
    except ConfigError as error:
        yield _failed("configuration", str(error), "Fix the file. Until then the previous one stays in effect.")
        return
    place = str(origin) if origin is not None else "built-in defaults"
    change, _ = compare(services.config.current, wanted)
    if change.restart:
        advice = "Restart codexd; `codexctl restart` shows how."
        yield _warning("configuration", f"{place}: {', '.join(change.restart)} changed since the start", advice)
    elif change.changed:
        advice = "Run `codexctl reload`."
        yield _warning("configuration", f"{place}: {', '.join(change.changed)} changed since it was read", advice)
    else:
        yield _ok("configuration", place)
    if origin is not None and wanted.server.client_keys and _others_read(origin):
        readable = any(not key.startswith("sha256:") for key in wanted.server.client_keys.values())
        if readable:
            advice = f"Run `chmod o-r {origin}`, or use `codexctl keys add` instead, which stores only hashes."
            yield _warning("configuration mode", f"{origin} contains client keys and is readable by everyone", advice)


def _others_read(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _files(services: Services) -> Iterator[Check]:
    state = services.state
    if not os.access(state, os.W_OK | os.X_OK):
        advice = (
            f"Make {state} writable for the user that runs codexd, or create it if it is missing. Otherwise refreshed "
            "tokens are lost."
        )
        yield _failed("state directory", f"{state} cannot be written", advice, "internal")
        return
    free = os.statvfs(state)
    if free.f_bavail * free.f_frsize < 1024 * 1024:
        yield _failed(
            "state directory", f"{state} has no space left", "Free some space on its file system.", "internal"
        )
        return
    yield _ok("state directory", str(state))
    for path in (state / "tokens.json", state / "keys.json"):
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_mode & 0o077:
            yield _warning("file mode", f"{path} can be read by others", f"Run `chmod 600 {path}`.")
        elif found.st_uid != os.geteuid():
            advice = f"Run `chown {os.geteuid()} {path}`."
            yield _warning("file owner", f"{path} belongs to another user (uid {found.st_uid})", advice)
        else:
            yield _ok("file mode", f"{path} is readable only by codexd")
    if services.keys.fault is not None:
        advice = "`codexctl keys add NAME` moves the file aside and starts a new one."
        yield _failed("client keys", services.keys.fault, advice)


def _network(services: Services) -> Iterator[Check]:
    """Yields checks of the proxies in use and of the trusted certificates."""
    hosts: dict[str, list[str]] = {}
    for url in (services.issuer.url, services.config.current.backend.url):
        host = urlsplit(url).hostname or ""
        try:
            route = services.upstream.route(url)
        except BadProxy as error:
            what, _, advice = str(error).partition(". ")
            yield _failed("proxy", f"{what} (needed for {host})", advice, "refused")
            continue
        said = f"{route.proxy.address} ({route.why})" if route.proxy else f"none ({route.why})"
        hosts.setdefault(said, []).append(host)
    for said, names in hosts.items():
        yield _ok("proxy", f"{said} for {' and '.join(dict.fromkeys(names))}")
    store = certificates.store(os.environ, services.config.current.backend.ca_file)
    faults = certificates.problems(store)
    for fault in faults:
        what, _, advice = str(fault).partition(". ")
        yield _failed("certificates", what, advice)
    if not faults:
        yield _ok("certificates", store.describe())


async def _reach(services: Services, name: str, url: str, say: Say, skews: list[float]) -> None:
    address = urlsplit(url)
    host = address.hostname or ""
    try:
        with trio.fail_after(REACH_DEADLINE):
            date = await services.upstream.reach(url)
    except trio.TooSlowError:
        advice = f"Check for a firewall between this machine and {host}, or set a proxy ($HTTPS_PROXY)."
        await say(_failed(name, f"{host} did not answer within {REACH_DEADLINE:g} seconds", advice, "upstream"))
    except ApiError as error:
        cause = error.__cause__
        if isinstance(cause, CannotConnect):
            await say(_failed(name, cause.what, cause.advice, "upstream"))
        else:
            advice = f"Check for a firewall between this machine and {host}."
            await say(_failed(name, f"{host}: {cause or error}", advice, "upstream"))
    else:
        how = "TLS" if address.scheme == "https" else "plain HTTP"
        await say(_ok(name, f"{host} answers over {how}"))
        if date is not None:
            skews.append(date - services.clock())


def clock_check(skews: list[float]) -> Check:
    if not skews:
        return _warning("clock", "no server could be reached to compare the time", "Fix the errors above first.")
    worst = max(skews, key=abs)
    if abs(worst) > MAX_SKEW:
        way = "behind" if worst > 0 else "ahead"
        advice = "Set it, for example with `timedatectl set-ntp true`. A wrong clock makes valid tokens seem expired."
        return _failed("clock", f"this machine's clock is {abs(worst):.0f} seconds {way}", advice)
    return _ok("clock", f"within {max(1.0, abs(worst)):.0f} s of the servers' clocks")


async def _token(services: Services, say: Say) -> bool:
    """Checks the sign-in; returns whether there is a token for the checks that follow."""
    try:
        await services.session.token()
    except ApiError as error:
        if error.error.code == "signed_out":
            why = services.session.describe().why or ""
            await say(_failed("sign-in", why, "Run `codexctl login`.", "signed_out"))
        else:
            advice = "Fix the errors above. codexd tries again by itself."
            await say(_failed("sign-in", str(error), advice, "upstream"))
        return False
    found = services.session.describe()
    who = f"{found.email or found.account_id or 'an unnamed account'}"
    if found.unsaved:
        advice = f"Make {services.state} writable before codexd stops, or you will have to sign in again."
        await say(_failed("sign-in", f"{who}, but the tokens could not be saved", advice, "internal"))
    elif found.refresh_failed is not None:
        advice = "codexd tries again by itself; `codexctl refresh` tries now."
        await say(_warning("sign-in", f"{who}; the last refresh failed: {found.refresh_failed}", advice))
    elif found.account_id is None:
        advice = "Run `codexctl login` to sign in again. Without an account id the backend may refuse requests."
        await say(_warning("sign-in", f"{who}; the tokens contain no account id", advice))
    else:
        await say(_ok("sign-in", who))
    return True


async def _account(services: Services, say: Say) -> None:
    try:
        known = await services.upstream.account_check()
    except ApiError as error:
        await say(_failed("account", str(error), "Try `codexctl refresh`, then `codexctl login`.", "upstream"))
        return
    if known:
        await say(_ok("account", "known to the backend"))
    else:
        advice = "Run `codexctl login`. The account no longer has access, or another one was selected."
        await say(_failed("account", "the backend does not list the account of this sign-in", advice, "upstream"))


async def _models(services: Services, say: Say) -> None:
    if await services.catalog.refresh(services.upstream):
        await say(_ok("models", f"{services.catalog.models_listed} listed"))
    else:
        advice = "The previous model list stays in use. If this continues, check backend.client_version."
        await say(_warning("models", services.catalog.why or "the model list could not be fetched", advice))


async def _deep(services: Services, say: Say) -> None:
    """Makes one request by each lane that the configuration allows."""
    wanted = services.config.current.backend.transport
    lanes: tuple[Lane, ...] = ("websocket", "http") if wanted == "auto" else (wanted,)
    for lane in lanes:
        await say(await _request(services, lane))


async def _request(services: Services, lane: Lane) -> Check:
    name, started = f"request ({'HTTP' if lane == 'http' else lane})", trio.current_time()
    try:
        with trio.fail_after(DEEP_DEADLINE):
            model, timings = await probe(services.pipeline, lane)
    except ApiError as error:
        return _failed(name, str(error), "`codexctl log` shows the details.", "upstream")
    except trio.TooSlowError:
        advice = "Try again; `codexctl status` shows whether a limit is reached."
        return _failed(name, f"no answer within {DEEP_DEADLINE:g} seconds", advice, "upstream")
    took = f"{model} answered in {trio.current_time() - started:.1f} s"
    key = {None: "", True: "; the backend accepted the cache key", False: "; the backend replaced the cache key"}
    return _ok(name, took + key[timings.key_kept])
