"""Answers in which codexd runs the hosted tools: the driver of ``codexd.protocol.hosted.rounds``.

It looks like one stream of the backend to the relay. Between two rounds it runs the tools and sends the next request,
on the same websocket if there is one. A failing tool does not end the answer: the model is told, and the client's item
says that it failed.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import structlog
import trio

from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol.codex.tools import SEARCH
from codexd.protocol.hosted import pages, tools
from codexd.protocol.hosted.rounds import Call, Outcome, Rounds, arguments_of, query_of
from codexd.protocol.hosted.tools import IMAGES, Hosted, ImageOptions
from codexd.telemetry.trace import Timings
from codexd.upstream.account_tools import AccountTools, images_answer, search_output
from codexd.upstream.attempt import Attempts
from codexd.upstream.client import Upstream
from codexd.upstream.http_lane import EventStream
from codexd.upstream.websocket_lane import WebsocketStream

ROUND_TRIES = 3
"""Attempts at a round after the first, of which the client may have seen the one before."""

END_PATIENCE = 0.5
"""Seconds to wait for the end of a round's body, so that its connection can be used again."""

RETRY_PAUSE = 0.5
"""Seconds before a round is opened once more."""

TICK = 1.0
"""Seconds between two signs of life while a tool runs."""

Step = Callable[[Sequence[bytes]], bool]

log = structlog.get_logger()


class HostedAnswers:
    """Opens the answer to one request, with the tools of ``hosted``."""

    def __init__(self, upstream: Upstream, account: AccountTools, attempts: Attempts, hosted: Hosted) -> None:
        self._upstream = upstream
        self._account = account
        self._attempts = attempts
        self._hosted = hosted

    @asynccontextmanager
    async def open(self) -> AsyncIterator["HostedSource"]:
        """Opens the first round as ``Attempts.open`` does; the others are opened while the stream is read."""
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(self._attempts.open())
            rounds = Rounds(self._hosted, self._attempts.call.request)
            runner = _Runner(self._account, self._hosted, self._attempts.call.timings)
            yield HostedSource(self._upstream, self._attempts, runner, rounds, stack, source)


class HostedSource:
    """The events of all rounds, as one ``UpstreamSource`` of the relay."""

    def __init__(
        self,
        upstream: Upstream,
        attempts: Attempts,
        runner: "_Runner",
        rounds: Rounds,
        stack: AsyncExitStack,
        source: EventStream | WebsocketStream,
    ) -> None:
        self._upstream = upstream
        self._attempts = attempts
        self._runner = runner
        self._rounds = rounds
        self._stack = stack
        self._source = source
        self._first = True
        self._tries = 0
        self._todo: list[Call] | None = None
        self._running = False
        self._outcomes: dict[str, Outcome] = {}
        self._out: list[bytes] = []

    @property
    def headers(self) -> Mapping[str, str]:
        return self._source.headers

    @property
    def pending(self) -> int:
        return self._source.pending

    async def push(self, step: Step) -> bool:
        """Calls ``step`` as the relay's ``UpstreamSource`` says. Raises ApiError."""
        while True:
            if self._out:
                events, self._out = self._out, []
                if not step(events):
                    return False
            elif self._rounds.over:
                await self._advance(step)
            else:
                ended, goes_on = await self._read(step)
                if not goes_on or (ended and not self._rounds.over):
                    return ended and not self._rounds.over

    async def _read(self, step: Step) -> tuple[bool, bool]:
        """Reads the current round; returns whether its stream ended, and whether the relay wants more."""
        goes_on = True

        def take(events: Sequence[bytes]) -> bool:
            nonlocal goes_on
            goes_on = step(self._rounds.feed(events))
            return goes_on and not self._rounds.over

        try:
            return await self._source.push(take), goes_on
        except Exception as error:
            if self._first or self._rounds.progressed:
                raise
            await self._close(error)
            self._rounds.restart()
            await self._open()
            return False, True

    async def _close(self, error: Exception) -> None:
        """Closes a round that failed. Raises ApiError if it cannot be tried again."""
        try:
            await self._stack.__aexit__(type(error), error, error.__traceback__)
        except ApiError as converted:
            error = converted
        self._check(error)

    def _check(self, error: Exception) -> None:
        self._tries += 1
        if not isinstance(error, ApiError) or not error.retryable or self._tries >= ROUND_TRIES:
            raise error
        log.info("sending the tool results again", after=error.error.code)

    async def _open(self) -> None:
        while True:
            try:
                self._source = await self._stack.enter_async_context(self._attempts.open())
            except ApiError as error:
                self._check(error)
                await trio.sleep(RETRY_PAUSE)
            else:
                return

    async def _advance(self, step: Step) -> None:
        """Does the next thing between two rounds: begins a call, runs it, or sends the next request."""
        if self._todo is None:
            self._todo = list(self._rounds.calls)
        if not self._todo:
            await self._next_round()
        elif self._running:
            call = self._todo.pop(0)
            self._running = False
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tick, step)
                outcome = self._outcomes[call.id] = await self._runner.run(call, self._rounds)
                nursery.cancel_scope.cancel()
            self._out = self._rounds.finished(call, outcome)
        elif self._rounds.spent:
            self._todo.clear()
        else:
            self._running = True
            self._out = self._rounds.started(self._todo[0])

    async def _next_round(self) -> None:
        await self._end_round()
        call = self._attempts.call
        request = self._rounds.next_request(self._outcomes)
        self._attempts = Attempts(self._upstream, call.followed(request), lambda: None)
        self._first, self._tries, self._todo, self._outcomes = False, 0, None, {}
        await self._open()

    async def _end_round(self) -> None:
        """Reads the end of a round and closes it. The connection may fail now: the round has ended."""
        failure: Exception | None = None
        try:
            with trio.move_on_after(END_PATIENCE):
                await self._source.push(lambda _: True)
        except Exception as error:  # noqa: BLE001 - of the connection
            failure = error
        with contextlib.suppress(ApiError):
            await self._stack.__aexit__(type(failure) if failure else None, failure, None)

    async def _tick(self, step: Step) -> None:
        """Sends keep-alives while a tool runs, which has its own deadline."""
        while True:
            await trio.sleep(TICK)
            step([])


class _Runner:
    """Runs the calls, and counts them in ``timings``."""

    def __init__(self, account: AccountTools, hosted: Hosted, timings: Timings) -> None:
        self._account = account
        self._hosted = hosted
        self._timings = timings

    async def run(self, call: Call, rounds: Rounds) -> Outcome:
        """Returns what a call has returned; also a failure is an outcome."""
        timings = self._timings
        timings.hosted += 1
        began = trio.current_time()
        try:
            outcome = await self._run(call, rounds)
        except ApiError as error:
            log.warning("a hosted tool failed", tool=call.name, code=error.error.code, reason=error.error.message)
            code = "too_many_requests" if error.status == 429 else "unavailable"
            outcome = Outcome(f"The tool failed: {error.error.message}", query_of(call), failed=code)
        if outcome.failed is not None:
            timings.hosted_failed += 1
        timings.hosted_seconds += trio.current_time() - began
        return outcome

    async def _run(self, call: Call, rounds: Rounds) -> Outcome:
        try:
            asked = arguments_of(call)
        except ValueError as error:
            return Outcome(f"The arguments cannot be used: {error}.", failed="invalid_tool_input")
        wanted = asked.wanted
        if call.name == IMAGES and self._hosted.image is not None:
            last = rounds.last_image() if asked.change_last_image else None
            return await self._draw(self._hosted.image, wanted, [] if last is None else [last])
        if call.name == SEARCH and self._hosted.search is not None:
            body = tools.search_body(self._hosted, wanted, asked.recency, asked.domains or ())
            found = await self._account.search(msgspec.json.encode(body))
            output = search_output(found.body)
            # Of foreign texts, up to megabytes.
            listed = await workers.run(len(found.body), partial(pages.pages_of, output))
            return Outcome(pages.text_of(output), wanted, listed)
        return Outcome(f"There is no tool {call.name}.", failed="invalid_tool_input")

    async def _draw(self, options: ImageOptions, prompt: str, images: Sequence[str]) -> Outcome:
        body = tools.image_body(options, prompt, images)
        found = await self._account.image(msgspec.json.encode(body), edits=bool(images))
        made = images_answer(found.body)
        facts = {key: getattr(made, key) for key in ("background", "output_format", "quality", "size")}
        image = {"result": made.data[0].b64_json, **{key: value for key, value in facts.items() if value is not None}}
        return Outcome("The image was drawn, and the user sees it.", prompt, image=image)
