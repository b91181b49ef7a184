"""A company's proxy on loopback: CONNECT or SOCKS5, with or without TLS and a password, and as unkind as they are.

It resolves no name: a request for ``chatgpt.test`` gets ``target``. The name exists nowhere, so nobody else resolved it.
"""

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio
import trustme


class Proxy:
    """``answer`` stands in for the 200 of CONNECT; ``opens`` is the CA with which it opens TLS, as companies do."""

    def __init__(
        self,
        target: tuple[str, int],
        *,
        kind: str = "http",
        credentials: tuple[str, str] | None = None,
        answer: bytes | None = None,
        opens: trustme.CA | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.target = target
        self.kind = kind
        self.credentials = credentials
        self.answer = answer
        self.opens = opens
        self.tls = tls
        self.asked: list[str] = []
        self.port = 0

    def url(self, userinfo: str = "") -> str:
        scheme = "https" if self.tls else {"http": "http", "socks": "socks5"}[self.kind]
        return f"{scheme}://{userinfo}127.0.0.1:{self.port}"

    async def handle(self, stream: Any) -> None:
        try:
            if self.tls is not None:
                stream = trio.SSLStream(stream, self.tls, server_side=True)
            host = await (self._connect(stream) if self.kind == "http" else self._socks(stream))
            if host is None:
                return
            self.asked.append(host)
            if self.opens is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                self.opens.issue_cert(host.rpartition(":")[0]).configure_cert(context)
                stream = trio.SSLStream(stream, context, server_side=True)
                await stream.do_handshake()
            await self._join(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _connect(self, stream: Any) -> str | None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(1)  # a byte at a time: what follows belongs to somebody else
            if not more:
                return None
            data += more
            if data == b"\x16":  # TLS, where none is spoken
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return None
        head = data.decode("latin-1")
        assert head.startswith("CONNECT "), head
        if self.credentials is not None:
            secret = base64.b64encode(":".join(self.credentials).encode()).decode()
            if f"proxy-authorization: basic {secret}".lower() not in head.lower():
                await stream.send_all(
                    b'HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic realm="x"\r\n'
                    b"content-length: 0\r\n\r\n"
                )
                return None
        await stream.send_all(self.answer or b"HTTP/1.1 200 Connection established\r\nVia: 1.1 corp\r\n\r\n")
        return None if self.answer else head.split()[1]

    async def _socks(self, stream: Any) -> str | None:
        async def exactly(size: int) -> bytes:
            data = b""
            while len(data) < size:
                more = await stream.receive_some(size - len(data))
                if not more:
                    raise trio.BrokenResourceError
                data += more
            return data

        version, count = await exactly(2)
        methods = await exactly(count) if version == 5 else b""
        wanted = 0 if self.credentials is None else 2
        if wanted not in methods:
            await stream.send_all(b"\x05\xff")
            return None
        await stream.send_all(bytes([5, wanted]))
        if self.credentials is not None:
            user = await exactly((await exactly(2))[1])
            password = await exactly((await exactly(1))[0])
            good = (user.decode(), password.decode()) == self.credentials
            await stream.send_all(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return None
        *_, kind = await exactly(4)
        assert kind == 3, "the name is the proxy's to resolve"
        name = (await exactly((await exactly(1))[0])).decode()
        port = int.from_bytes(await exactly(2), "big")
        await stream.send_all(self.answer or b"\x05\x00\x00\x03\x04corp\x1f\x90")
        return None if self.answer else f"{name}:{port}"

    async def _join(self, stream: Any) -> None:
        async with await trio.open_tcp_stream(*self.target) as other, trio.open_nursery() as nursery:

            async def pump(source: Any, sink: Any) -> None:
                try:
                    while data := await source.receive_some(65536):
                        await sink.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(pump, stream, other)
            nursery.start_soon(pump, other, stream)


AnyProxy = TypeVar("AnyProxy", bound=Proxy)


@asynccontextmanager
async def proxying(proxy: AnyProxy) -> AsyncIterator[AnyProxy]:
    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, proxy.handle, 0, host="127.0.0.1"))
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
