"""Proxies and names on the way to the backend: each kind of proxy, what it refuses, and addresses that are dead."""

import contextlib
import socket
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trustme

from codexd.upstream import proxies
from codexd.upstream.proxies import Origin, ProxyRoute, parse
from codexd.upstream.transport import Transport
from codexd.upstream.tunnel import CannotConnect
from support.proxy import Proxy, proxying
from support.serving import ANSWER, Server, contexts, here, routed, serving, serving_through


@pytest.mark.parametrize("kind", ["http", "https", "socks"])
async def test_a_proxy_is_asked_once_for_a_connection(authority: trustme.CA, kind: str) -> None:
    _, trusting = contexts(authority, "localhost")
    async with serving_through(authority, kind, "https", trusting) as (made, serve):
        asked: list[Origin] = []
        made.route = lambda origin, route=made.route: asked.append(origin) or route(origin)  # type: ignore[misc]
        server = Server(ANSWER, ANSWER)
        async with serve(server) as port, httpx.AsyncClient(transport=made) as http:
            await made.warm(here(port, "https").origin)
            for _ in range(2):
                assert (await http.get(f"https://localhost:{port}/")).text == "ok"
            assert asked == [("https", "localhost", port)]
            assert server.connections == 1


async def test_what_goes_wrong_with_a_proxy_names_it(authority: trustme.CA) -> None:
    _, trusting = contexts(authority, "localhost")

    async def fails(proxy: Proxy, said: str, userinfo: str = "", context: Any = trusting) -> None:
        made = Transport(context, routed(proxy, userinfo))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=said) as caught:
            await made.warm(("https", "chatgpt.test", 443))
        assert caught.value.code in ("proxy_failed", "certificate_not_trusted")
        assert "sEcReT" not in str(caught.value)

    async with proxying(Proxy(("127.0.0.1", 1), credentials=("u", "p"))) as proxy:
        await fails(
            proxy, r"the proxy http://127.0.0.1:\d+ \(\$HTTPS_PROXY\) asks for a user name and a password \(407\)"
        )
        await fails(proxy, "does not accept the user name", "u:sEcReT@")
    async with proxying(Proxy(("127.0.0.1", 1), answer=b"HTTP/1.1 403 No\r\n\r\n")) as proxy:
        await fails(proxy, r"refuses to connect to chatgpt.test:443 \(403 Forbidden\)")
    async with proxying(Proxy(("127.0.0.1", 1), answer=b"HTTP/1.1 502 No\r\n\r\n")) as proxy:
        await fails(proxy, r"could not connect to chatgpt.test:443 \(502 Bad Gateway\)")
    async with proxying(Proxy(("127.0.0.1", 1), kind="socks")) as proxy:
        http = Transport(trusting, lambda _: ProxyRoute(parse(f"http://127.0.0.1:{proxy.port}", "$HTTPS_PROXY"), ""))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=r"for SOCKS write socks5://"):
            await http.warm(("https", "chatgpt.test", 443))
    async with proxying(Proxy(("127.0.0.1", 1), opens=trustme.CA())) as proxy:
        await fails(proxy, r"certificate of chatgpt.test is not trusted, through the proxy http://127.*backend.ca_file")
    async with proxying(Proxy(("127.0.0.1", 1))) as proxy:
        made = Transport(trusting, lambda _: ProxyRoute(parse(f"https://127.0.0.1:{proxy.port}", "$https_proxy"), ""))
        with trio.fail_after(20), pytest.raises(CannotConnect, match=r"write http:// in \$https_proxy"):
            await made.warm(("https", "chatgpt.test", 443))
    proxy.port = 1
    await fails(proxy, r"no connection to 127.0.0.1:1: connection refused, which is the proxy http://127.0.0.1:1")


async def test_an_international_name_is_asked_for_in_its_ascii_form() -> None:
    for kind in ("http", "socks"):
        async with proxying(Proxy(("127.0.0.1", 1), kind=kind)) as proxy:
            made = Transport(route=routed(proxy))
            for url in ("http://xn--bcher-kva.example/", "http://b\u00fccher.example/"):
                async with httpx.AsyncClient(transport=made) as http:
                    with pytest.raises(httpx.HTTPError):  # the proxy reaches nobody there
                        await http.get(url)
            assert proxy.asked == ["xn--bcher-kva.example:80"] * 2


async def test_a_proxy_that_cannot_be_used_fails_what_needs_it() -> None:
    made = Transport(route=partial(proxies.route, {"ALL_PROXY": "foo://p", "NO_PROXY": "[::1], fd00::/8, 127.0.0.1"}))
    with pytest.raises(CannotConnect, match=r"\$ALL_PROXY: unsupported proxy scheme"):
        await made.warm(("https", "chatgpt.test", 443))
    async with serving(Server(ANSWER)) as port, httpx.AsyncClient(transport=made) as http:
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"


class Names(trio.abc.HostnameResolver):
    """A resolver that knows one name."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        if host != b"chatgpt.test":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (each, port, 0, 0))
            if ":" in each
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in self._addresses
        ]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("addresses", "served"),
    [
        (["127.0.0.1"], "127.0.0.1"), (["::1"], "::1"), (["::1", "127.0.0.1"], "127.0.0.1"), (["127.0.0.1", "::1"], "::1"),
        (["127.0.0.9", "127.0.0.8", "127.0.0.1"], "127.0.0.1"), (["full", "127.0.0.1"], "127.0.0.1"), (["full", "::1"], "::1"),
    ],
)  # fmt: skip
async def test_an_address_that_is_dead_does_not_count(addresses: list[str], served: str) -> None:
    """IPv6, IPv4 and mixed; refused, and one whose listener takes no more (``full``): there is no answer at all."""
    if not socket.has_ipv6 or not _has_ipv6():
        pytest.skip("this machine has no IPv6 on loopback")
    server = Server(ANSWER)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, server.handle, 0, host=served))
        port = listeners[0].socket.getsockname()[1]
        with socket.socket() as full, contextlib.ExitStack() as stack:
            full.bind(("127.0.0.7", port))
            full.listen(0)
            for _ in range(3):  # more than its queue takes: the next ones hear nothing
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.7", port))
            names = ["127.0.0.7" if each == "full" else each for each in addresses]
            trio.socket.set_custom_hostname_resolver(Names(*names))
            with trio.fail_after(20):
                async with httpx.AsyncClient(transport=Transport()) as http:
                    assert (await http.get(f"http://chatgpt.test:{port}/")).text == "ok"
                    with pytest.raises(CannotConnect, match=r"the name elsewhere\.test cannot be resolved"):
                        await http.get(f"http://elsewhere.test:{port}/")
                    trio.socket.set_custom_hostname_resolver(Names("127.0.0.9"))
                    with pytest.raises(CannotConnect, match=r"no connection to chatgpt.test:1: connection refused"):
                        await http.get("http://chatgpt.test:1/")
        nursery.cancel_scope.cancel()
