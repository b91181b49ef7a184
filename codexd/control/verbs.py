"""The daemon's side of each verb of the control socket, dispatched by ``Verbs.handle``."""

import os
import socket
from collections.abc import Sequence
from typing import assert_never

import msgspec
import trio

from codexd import __version__, errors
from codexd.auth import store
from codexd.auth.login import Attempt
from codexd.auth.session import SignIn
from codexd.auth.store import StoreError
from codexd.config.load import described
from codexd.config.model import Config
from codexd.control import asking, doctor, wire
from codexd.control.server import Say
from codexd.errors import ApiError, ConfigError
from codexd.protocol.codex.rate_limits import Limits
from codexd.services import Change, Services, compare
from codexd.state.instructions import FAMILIES, InstructionText
from codexd.system.systemd import answers
from codexd.telemetry.log import TAIL, Line
from codexd.telemetry.tokens import Row
from codexd.telemetry.trace import KEPT

USAGE_AGE = 60.0
"""Seconds for which ``status`` shows the known usage without asking the backend."""

USAGE_PATIENCE = 3.0
"""Seconds that ``status`` waits for the backend's usage page; it must also work if the backend does not answer."""

ERRORS_SHOWN = 5
_FROM = {
    "error": ("critical", "error"),
    "warn": ("critical", "error", "warning"),
    "info": ("critical", "error", "warning", "info"),
    "debug": ("critical", "error", "warning", "info", "debug"),
}

LENT = "codexctl"
"""The name of the key for checks of codexctl, in the log and in the usage."""

HEALTH_PATIENCE = 4.0
"""Seconds in which codexd must answer its own request to be healthy."""


class Verbs:
    """The handlers of all verbs. ``listener`` is a socket of the API, for the health check."""

    def __init__(self, services: Services, listener: socket.socket) -> None:
        self._services = services
        self._listener = listener

    async def handle(self, request: wire.Request, say: Say) -> None:  # noqa: C901 - a dispatch table, checked for gaps
        """Runs a request and sends its replies with ``say``. Raises ApiError."""
        match request:
            case wire.Login():
                await self._login(request, say)
            case wire.LoginCallback():
                await self._services.logins.paste(request.address)
            case wire.LoginImport():
                await self._import(request, say)
            case wire.Logout():
                why = await self._services.session.sign_out()
                await say(wire.SignedOut(revoked=why is None, why=why))
            case wire.Status():
                await say(await self._status())
            case wire.Health():
                await say(await self._health(ready=request.ready))
            case wire.Refresh():
                await self._services.session.refresh()
                await say(account(self._services.session.describe()))
            case wire.Usage():
                await say(await self._usage())
            case wire.Models():
                await say(await self._models(refresh=request.refresh))
            case wire.KeysAdd():
                first = not self._services.keys.required
                key = self._services.keys.add(request.name, strict=request.strict, limits=request.limits)
                await say(wire.KeyAdded(name=request.name, key=key, first=first))
            case wire.KeysList():
                await say(self._keys())
            case wire.KeysRevoke():
                going_on = self._services.journal.answers_of(request.name)
                # The answers of a key that was revoked before can still be ended.
                if not (request.now and going_on) or self._services.keys.knows(request.name):
                    self._services.keys.revoke(request.name)
                if request.now:
                    for relay in going_on:
                        relay.abort(errors.key_revoked())
                required = self._services.keys.required
                await say(wire.KeyRevoked(name=request.name, required=required, answers=len(going_on)))
            case wire.KeysLend():
                with self._services.keys.lent(LENT) as key:
                    await say(wire.KeyAdded(name=LENT, key=key))
                    await trio.sleep_forever()  # until the client closes the connection
            case wire.Configuration():
                await say(await trio.to_thread.run_sync(self._configuration))
            case wire.Reload():
                await say(self._reload())
            case wire.Doctor():
                await doctor.examine(self._services, say, deep=request.deep)
            case wire.Metrics():
                await say(wire.MetricsText(text=self._services.api.service.metrics_text().decode()))
            case wire.Top():
                await say(await self._top())
            case wire.Log():
                await self._log(request, say)
            case wire.Explain():
                await say(self._explain(request.request))
            case wire.SetLevel():
                await say(self._level(request))
            case wire.History():
                await say(await self._history(request))
            case wire.PromptsList():
                await say(self._prompts())
            case wire.PromptsShow():
                self._known(request.name)
                await say(_text(self._services.instructions.get(request.name)))
            case wire.PromptsSet():
                self._known(request.name)
                await say(_text(self._services.instructions.set(request.name, request.text, request.source)))
            case wire.PromptsReset():
                await say(wire.PromptsWereReset(names=self._services.instructions.reset(request.name)))
            case wire.PromptsOffer():
                await self._offer(say)
            case wire.Try():
                await asking.ask(self._services, request, say)
            case _:
                assert_never(request)

    # --- requests, log, history

    async def _top(self) -> wire.TopReport:
        services, usage = self._services, self._services.upstream.limits()
        return wire.TopReport(
            now=services.clock(),
            daemon_version=__version__,
            uptime_seconds=int(trio.current_time() - services.lifecycle.started),
            signed_in=services.session.signed_in,
            requests=await services.journal.all_in_progress(),
            errors=services.journal.recent.errors()[-ERRORS_SHOWN:],
            finished=sum(hour.requests for hour in services.usage.hours()),
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
        journal = self._services.journal
        in_progress = journal.in_progress(name, bodies=True)
        trace = in_progress[-1] if in_progress else journal.recent.find(name)
        if trace is None:
            raise errors.no_such_request(name, KEPT)
        return wire.Explained(request=trace, bodies=self._services.config.current.logging.enable_request_logging)

    def _level(self, request: wire.SetLevel) -> wire.LevelReport:
        level = self._services.level
        if request.seconds:
            level.set(request.level, request.seconds)
        until = None if level.until is None else int(level.until)
        return wire.LevelReport(level=level.current, configured=level.configured, until=until)

    async def _history(self, request: wire.History) -> wire.HistoryReport:
        rows = await trio.to_thread.run_sync(_summed, self._services.usage.since(request.since), request.by)
        shares = self._services.usage.shares.rows() if request.by == ["key"] else []
        return wire.HistoryReport(since=request.since, by=request.by, rows=rows, shares=shares)

    # --- instruction texts

    def _known(self, name: str) -> None:
        """Raises ApiError 404 unless the name is that of a family or a model."""
        if name not in FAMILIES and all(name != model.slug for model in self._services.catalog.models.own):
            raise errors.no_such_prompt(name, FAMILIES)

    def _prompts(self) -> wire.PromptsReport:
        entries = [
            wire.PromptEntry(
                name=text.name, size=len(text.text), sha256=text.sha256, source=text.source, set_at=text.set_at
            )
            for text in self._services.instructions.all()
        ]
        return wire.PromptsReport(prompts=entries, in_use=self._services.config.current.codex.mode)

    async def _offer(self, say: Say) -> None:
        """Sends the official texts that differ from those in effect. Raises ApiError 401 or 503."""
        services = self._services
        if not await services.catalog.refresh(services.upstream):
            raise errors.no_catalogue(services.catalog.why)
        source = f"{services.config.current.backend.url}/codex/models"
        for name, text in sorted((await services.catalog.instructions()).items()):
            before = services.instructions.for_model(name)
            if before != text.strip():
                await say(wire.PromptOffered(name=name, before=before, text=text.strip(), source=source))

    # --- the sign-in

    async def _login(self, request: wire.Login, say: Say) -> None:
        attempt, joined = await self._services.logins.start(request.method)
        try:
            await say(_shown(attempt, joined=joined))
            await attempt.finished.wait()
        except trio.Cancelled:
            # The user may be entering the device code elsewhere, so that sign-in continues; a browser sign-in ends.
            if attempt.method != "device" and not joined:
                attempt.end(errors.login_ended("codexctl was stopped"))
            raise
        if attempt.error is not None:
            raise attempt.error
        await say(account(self._services.session.describe()))

    async def _import(self, request: wire.LoginImport, say: Say) -> None:
        try:
            credentials = store.from_auth_json(bytes(request.auth))
        except StoreError as error:
            raise errors.bad_request(f"The file cannot be imported: {error}.", code="import") from error
        expiry = credentials.expiry()
        if credentials.refresh_token is None and expiry is not None and expiry <= self._services.clock():
            raise errors.bad_request(
                "The file cannot be imported: its access token has expired and it holds no refresh token. Sign in with "
                "`codexctl login`.",
                code="import",
            )
        await self._services.session.sign_in(credentials)
        await say(account(self._services.session.describe()))

    # --- reports

    async def _status(self) -> wire.StatusReport:
        services = self._services
        usage = services.upstream.limits()
        # Not if the token must be refreshed first: a refresh cannot be cancelled half-way.
        if services.session.fresh and (usage is None or services.clock() - usage.as_of > USAGE_AGE):
            with trio.move_on_after(USAGE_PATIENCE):
                try:
                    usage = await services.upstream.usage()
                except ApiError:
                    usage = services.upstream.limits()
        login = services.logins.current
        signed_in = account(services.session.describe())
        websockets, idle = services.upstream.websockets
        return wire.StatusReport(
            daemon_version=__version__,
            pid=os.getpid(),
            uptime_seconds=int(trio.current_time() - services.lifecycle.started),
            account=signed_in,
            listeners=services.lifecycle.listeners,
            streams_open=services.pipeline.open,
            websockets=websockets,
            websockets_idle=idle,
            backend=services.upstream.lane,
            models_listed=services.catalog.models_listed,
            models_fetched_at=services.catalog.fetched_at,
            client_keys=len(services.keys.list()),
            keys_required=services.keys.required,
            config=services.config.source,
            state_directory=str(services.state),
            draining=services.lifecycle.draining,
            login=login.method if login is not None and not login.finished.is_set() else None,
            usage=None if usage is None or not signed_in.signed_in else _report(usage),
            faults=services.lifecycle.keepers.faults,
        )

    async def _health(self, *, ready: bool) -> wire.HealthReport:
        session = self._services.session
        if ready and self._services.lifecycle.draining:
            raise errors.stopping()
        if ready and not session.signed_in:
            raise errors.signed_out(session.describe().why or "")
        if ready and not session.ready:
            raise errors.issuer_unavailable(session.describe().refresh_failed or "unknown reason", 0)
        answered = self._services.lifecycle.draining
        if not answered:  # while draining it does not listen, but finishes open streams
            with trio.move_on_after(HEALTH_PATIENCE):
                answered = await answers(self._listener)
        if not answered:
            raise errors.not_answering(HEALTH_PATIENCE)
        faults = self._services.lifecycle.keepers.faults
        return wire.HealthReport(daemon_version=__version__, signed_in=session.signed_in, faults=faults)

    async def _usage(self) -> wire.UsageReport:
        try:
            return _report(await self._services.upstream.usage())
        except ApiError as error:
            known = self._services.upstream.limits()
            if known is None or error.error.code == "signed_out":
                raise
            return _report(known, why=error.error.message)

    async def _models(self, *, refresh: bool) -> wire.ModelsReport:
        catalog = self._services.catalog
        worked = not refresh or await catalog.refresh(self._services.upstream)
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
        keys = self._services.keys
        entries = [msgspec.convert(key, wire.KeyEntry, from_attributes=True) for key in keys.list()]
        return wire.KeysReport(keys=entries, required=keys.required, why=keys.fault)

    def _configuration(self) -> wire.ConfigurationReport:
        """Reads the file again, to say where each value came from and which would be others after a reload.

        If the file cannot be used, values that are set are said to come from before the change.
        """
        config = self._services.config
        origins: dict[str, str] = {}
        change, why, file = Change([], []), None, config.origin
        try:
            wanted, _ = config.load()
            change, _ = compare(config.current, wanted)
            if config.sources is not None:
                origins, file = config.sources.origins(), file or config.sources.file()
        except ConfigError as error:
            why = error.sentence()
        others = change if why is None else compare(Config(), config.current)[0]
        origins |= dict.fromkeys([*others.changed, *others.restart], "before the change")
        entries = [
            wire.ConfigEntry(key=key, value=value, origin=origins.get(key)) for key, value in described(config.current)
        ]
        return wire.ConfigurationReport(
            file="" if file is None else str(file),
            exists=config.origin is not None,
            entries=entries,
            changed=change.changed,
            restart=change.restart,
            why=why,
        )

    def _reload(self) -> wire.Reloaded:
        try:
            change = self._services.reload()
        except ConfigError as error:
            message = (
                f"{error.sentence()} The previous configuration stays in effect. Fix this, then run `codexctl reload`."
            )
            raise errors.bad_request(message, code="configuration") from error
        return wire.Reloaded(config=self._services.config.source, changed=change.changed, restart=change.restart)


def _text(text: InstructionText) -> wire.PromptText:
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


def _summed(rows: list[Row], by: Sequence[str]) -> list[Row]:
    """Returns the sums of rows that are equal in these columns. There may be thousands: run it in a thread."""
    summed: dict[tuple[str, ...], Row] = {}
    for row in rows:
        columns = (("day", row.day), ("model", row.model), ("key", row.key))
        day, model, key = (value if column in by else "" for column, value in columns)
        summed.setdefault((day, model, key), Row(day=day, model=model, key=key)).join(row)
    return [summed[place] for place in sorted(summed)]
