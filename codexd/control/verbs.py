"""What the daemon does for each verb of the control socket. One method a verb; what it says last ends the answer."""

import os
import socket
from pathlib import Path
from typing import assert_never

import msgspec
import trio

from codexd import __version__, errors
from codexd.auth import store
from codexd.auth.login import Attempt
from codexd.auth.session import SignIn
from codexd.auth.store import StoreError
from codexd.control import asking, doctor, wire
from codexd.control.server import Say
from codexd.errors import ApiError, ConfigError
from codexd.parts import Parts
from codexd.protocol.limits import Limits
from codexd.state.instructions import FAMILIES, Text
from codexd.system.systemd import answers
from codexd.telemetry.log import TAIL, Line
from codexd.telemetry.tokens import Row
from codexd.telemetry.trace import KEPT

USAGE_AGE = 60.0
"""Seconds for which ``status`` takes the usage that is known, before it asks the backend."""

USAGE_PATIENCE = 3.0
"""Seconds that ``status`` waits for the backend's usage page: it must also answer when the backend does not."""


ERRORS_SHOWN = 5
_FROM = {
    "error": ("critical", "error"),
    "warn": ("critical", "error", "warning"),
    "info": ("critical", "error", "warning", "info"),
    "debug": ("critical", "error", "warning", "info", "debug"),
}

HEALTH_PATIENCE = 4.0
"""Seconds in which codexd has to answer its own request, to be called healthy."""


class Verbs:
    """``listener`` is a socket of the API, to see whether anything answers there."""

    def __init__(self, parts: Parts, listener: socket.socket) -> None:
        self._parts = parts
        self._listener = listener

    async def handle(self, request: wire.Request, say: Say) -> None:  # noqa: C901 - a dispatch table, checked for gaps
        """Raises ApiError."""
        match request:
            case wire.Login():
                await self._login(request, say)
            case wire.LoginCallback():
                await self._parts.logins.paste(request.address)
            case wire.LoginImport():
                await self._import(request, say)
            case wire.Logout():
                why = await self._parts.session.sign_out()
                await say(wire.SignedOut(revoked=why is None, why=why))
            case wire.Status():
                await say(await self._status())
            case wire.Health():
                await say(await self._health(ready=request.ready))
            case wire.Refresh():
                await self._parts.session.refresh()
                await say(account(self._parts.session.describe()))
            case wire.Usage():
                await say(await self._usage())
            case wire.Models():
                await say(await self._models(refresh=request.refresh))
            case wire.KeysAdd():
                key = self._parts.keys.add(request.name, strict=request.strict, limits=request.limits)
                await say(wire.KeyAdded(name=request.name, key=key))
            case wire.KeysList():
                await say(self._keys())
            case wire.KeysRevoke():
                self._parts.keys.revoke(request.name)
                await say(wire.KeyRevoked(name=request.name, required=self._parts.keys.required))
            case wire.Reload():
                await say(self._reload())
            case wire.Doctor():
                await doctor.examine(self._parts, say, deep=request.deep)
            case wire.Metrics():
                await say(wire.MetricsText(text=self._parts.api.metrics_text().decode()))
            case wire.Top():
                await say(self._top())
            case wire.Log():
                await self._log(request, say)
            case wire.Explain():
                await say(self._explain(request.request))
            case wire.SetLevel():
                await say(self._level(request))
            case wire.History():
                await say(self._history(request))
            case wire.PromptsList():
                await say(self._prompts())
            case wire.PromptsShow():
                self._known(request.name)
                await say(_text(self._parts.instructions.get(request.name)))
            case wire.PromptsSet():
                self._known(request.name)
                await say(_text(self._parts.instructions.set(request.name, request.text, request.source)))
            case wire.PromptsReset():
                await say(wire.PromptsWereReset(names=self._parts.instructions.reset(request.name)))
            case wire.PromptsOffer():
                await self._offer(say)
            case wire.Try():
                await asking.ask(self._parts, request, say)
            case _:
                assert_never(request)

    # --- what it does

    def _top(self) -> wire.TopReport:
        parts, usage = self._parts, self._parts.upstream.limits()
        return wire.TopReport(
            now=parts.clock(),
            daemon_version=__version__,
            uptime_seconds=int(trio.current_time() - parts.started),
            signed_in=parts.session.signed_in,
            requests=parts.api.under_way(),
            errors=parts.api.recent.errors()[-ERRORS_SHOWN:],
            finished=sum(hour.requests for hour in parts.ledger.hours()),
            usage=None if usage is None else _report(usage),
        )

    async def _log(self, request: wire.Log, say: Say) -> None:
        wanted = _FROM[request.level]

        def asked_for(line: Line) -> bool:
            return line.level in wanted and (request.request is None or line.request_id.startswith(request.request))

        found = [line for line in TAIL.since(0) if asked_for(line)]
        at = TAIL.total
        for line in found[-request.lines :] if request.lines > 0 else ():
            await say(wire.LogLine(level=line.level, line=line.text()))
        while request.follow:
            if TAIL.total == at:
                await TAIL.more()
            lines = TAIL.since(at)
            lost = TAIL.total - at - len(lines)
            at = TAIL.total
            for line in filter(asked_for, lines):
                await say(wire.LogLine(level=line.level, line=line.text(), lost=lost))
                lost = 0

    def _explain(self, name: str) -> wire.Explained:
        api = self._parts.api
        under_way = api.under_way(name, bodies=True)
        trace = under_way[-1] if under_way else api.recent.find(name)
        if trace is None:
            raise errors.no_such_request(name, KEPT)
        return wire.Explained(request=trace, bodies=self._parts.config.logging.enable_request_logging)

    def _level(self, request: wire.SetLevel) -> wire.LevelReport:
        parts = self._parts
        if request.seconds:
            parts.set_level(request.level, request.seconds)
        until = None if parts.level_until is None else int(parts.level_until)
        return wire.LevelReport(level=parts.level, configured=parts.config.logging.level, until=until)

    def _history(self, request: wire.History) -> wire.HistoryReport:
        summed: dict[tuple[str, ...], Row] = {}
        for row in self._parts.ledger.since(request.since):
            day, model, key = (
                value if column in request.by else ""
                for column, value in (("day", row.day), ("model", row.model), ("key", row.key))
            )
            total = summed.setdefault((day, model, key), Row(day=day, model=model, key=key))
            total.join(row)
        rows = [summed[place] for place in sorted(summed)]
        return wire.HistoryReport(since=request.since, by=request.by, rows=rows)

    # --- instruction texts

    def _known(self, name: str) -> None:
        """Raises ApiError 404 for what is neither a family nor a model."""
        if name not in FAMILIES and all(name != model.slug for model in self._parts.catalog.models.own):
            raise errors.no_such_prompt(name, FAMILIES)

    def _prompts(self) -> wire.PromptsReport:
        entries = [
            wire.PromptEntry(
                name=text.name, size=len(text.text), sha256=text.sha256, source=text.source, set_at=text.set_at
            )
            for text in self._parts.instructions.all()
        ]
        return wire.PromptsReport(prompts=entries, in_use=self._parts.config.codex.mode)

    async def _offer(self, say: Say) -> None:
        """Raises ApiError 401 or 503."""
        parts = self._parts
        if not await parts.catalog.refresh(parts.upstream):
            raise errors.no_catalogue(parts.catalog.why)
        source = f"{parts.config.backend.url}/codex/models"
        for name, text in sorted((await parts.catalog.instructions()).items()):
            before = parts.instructions.for_model(name)
            if before != text.strip():
                await say(wire.PromptOffered(name=name, before=before, text=text.strip(), source=source))

    # --- the sign-in

    async def _login(self, request: wire.Login, say: Say) -> None:
        attempt, joined = await self._parts.logins.start(request.method)
        try:
            await say(_shown(attempt, joined=joined))
            await attempt.finished.wait()
        except trio.Cancelled:
            # A device code may be in somebody's hand already; a browser's way back ends with who asked for it.
            if attempt.method != "device" and not joined:
                attempt.end(errors.login_ended("codexctl was stopped"))
            raise
        if attempt.error is not None:
            raise attempt.error
        await say(account(self._parts.session.describe()))

    async def _import(self, request: wire.LoginImport, say: Say) -> None:
        try:
            credentials = store.from_auth_json(bytes(request.auth))
        except StoreError as error:
            raise errors.bad_request(f"The file cannot be imported: {error}.", code="import") from error
        expiry = credentials.expiry()
        if credentials.refresh_token is None and expiry is not None and expiry <= self._parts.clock():
            raise errors.bad_request(
                "The file cannot be imported: its access token has expired and it holds no refresh token. Sign in with "
                "`codexctl login`.",
                code="import",
            )
        await self._parts.session.sign_in(credentials)
        await say(account(self._parts.session.describe()))

    # --- what is known

    async def _status(self) -> wire.StatusReport:
        parts = self._parts
        usage = parts.upstream.limits()
        # Not with a token that must be renewed first: a refresh cannot be given up half-way.
        if parts.session.fresh and (usage is None or parts.clock() - usage.as_of > USAGE_AGE):
            with trio.move_on_after(USAGE_PATIENCE):
                try:
                    usage = await parts.upstream.usage()
                except ApiError:
                    usage = parts.upstream.limits()
        login = parts.logins.current
        signed_in = account(parts.session.describe())
        return wire.StatusReport(
            daemon_version=__version__,
            pid=os.getpid(),
            uptime_seconds=int(trio.current_time() - parts.started),
            account=signed_in,
            listeners=parts.listeners,
            streams_open=parts.api.answers.open,
            models_listed=parts.catalog.models_listed,
            models_fetched_at=parts.catalog.fetched_at,
            client_keys=len(parts.keys.list()),
            keys_required=parts.keys.required,
            config=_place(parts.origin),
            state_directory=str(parts.state),
            draining=parts.draining,
            login=login.method if login is not None and not login.finished.is_set() else None,
            usage=None if usage is None or not signed_in.signed_in else _report(usage),
        )

    async def _health(self, *, ready: bool) -> wire.HealthReport:
        session = self._parts.session
        if ready and self._parts.draining:
            raise errors.stopping()
        if ready and not session.signed_in:
            raise errors.signed_out(session.describe().why or "Not signed in")
        if ready and not session.ready:
            raise errors.issuer_unavailable(session.describe().refresh_failed or "no reason is known", 0)
        answered = self._parts.draining
        if not answered:  # it listens no more then, and finishes what is open
            with trio.move_on_after(HEALTH_PATIENCE):
                answered = await answers(self._listener)
        if not answered:
            raise errors.not_answering(HEALTH_PATIENCE)
        return wire.HealthReport(daemon_version=__version__, signed_in=session.signed_in)

    async def _usage(self) -> wire.UsageReport:
        try:
            return _report(await self._parts.upstream.usage())
        except ApiError as error:
            known = self._parts.upstream.limits()
            if known is None or error.error.code == "signed_out":
                raise
            return _report(known, why=error.error.message)

    async def _models(self, *, refresh: bool) -> wire.ModelsReport:
        catalog = self._parts.catalog
        worked = not refresh or await catalog.refresh(self._parts.upstream)
        models = [
            wire.ModelEntry(
                name=model.slug,
                efforts=list(model.efforts),
                default_effort=model.default_effort,
                context_window=model.context_window,
                shape="lite" if model.lite else "classic",
                listed=model.listed,
                aliases=catalog.models.aliases_of(model.slug),
            )
            for model in catalog.models.own
        ]
        return wire.ModelsReport(models=models, fetched_at=catalog.fetched_at, why=None if worked else catalog.why)

    def _keys(self) -> wire.KeysReport:
        keys = self._parts.keys
        entries = [msgspec.convert(key, wire.KeyEntry, from_attributes=True) for key in keys.list()]
        return wire.KeysReport(keys=entries, required=keys.required, why=keys.fault)

    def _reload(self) -> wire.Reloaded:
        try:
            change = self._parts.reload()
        except ConfigError as error:
            said = str(error).rstrip(".")
            message = f"{said}{'' if said.endswith('?') else '.'} The configuration in force stays; mend it and reload."
            raise errors.bad_request(message, code="configuration") from error
        return wire.Reloaded(config=_place(self._parts.origin), changed=change.changed, restart=change.restart)


def _text(text: Text) -> wire.PromptText:
    return wire.PromptText(**msgspec.structs.asdict(text))


def account(found: SignIn) -> wire.Account:
    return wire.Account(**found._asdict())


def _shown(attempt: Attempt, *, joined: bool) -> wire.DeviceCode | wire.AuthorizationUrl:
    expires_at = int(attempt.expires_at)
    if attempt.user_code is None:
        return wire.AuthorizationUrl(authorization_url=attempt.url, expires_at=expires_at, joined=joined)
    return wire.DeviceCode(
        verification_url=attempt.url, user_code=attempt.user_code, expires_at=expires_at, joined=joined
    )


def _report(limits: Limits, why: str | None = None) -> wire.UsageReport:
    return wire.UsageReport(**msgspec.structs.asdict(limits), why=why)


def _place(origin: Path | None) -> str:
    return str(origin) if origin is not None else "built-in defaults"
