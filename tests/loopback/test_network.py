"""The real daemon on the networks that its users have: behind proxies, with a company's own CA, with odd variables."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from codexd.auth import store
from support.control import codexctl
from support.daemon import PATIENCE, Daemon, hello, running
from support.proxy import Proxy, proxying
from support.simulated import Simulated, simulated

pytestmark = pytest.mark.loopback

NO = {"NO_PROXY": "", "SSL_CERT_FILE": "", "SSL_CERT_DIR": ""}


class Company:
    """A network without a way out but the proxy, whose names only the proxy knows."""

    def __init__(self, chatgpt: Simulated, proxy: Proxy, ca: Path, folder: Path, logs: Path) -> None:
        self.chatgpt = chatgpt
        self.proxy = proxy
        self.ca = ca
        self._folder = folder
        self._logs = logs

    @asynccontextmanager
    async def daemon(self, env: dict[str, str], **sections: Any) -> AsyncIterator[Daemon]:
        state = self._folder / "state"
        state.mkdir(exist_ok=True)
        store.save(state / "tokens.json", self.chatgpt.issuer.sign_in())
        sections = {
            "oauth": {"issuer": "https://auth.test"},
            **sections,
            "backend": {"url": "https://chatgpt.test/backend-api"} | sections.get("backend", {}),
        }
        async with running(self._folder, self._logs, self.chatgpt, signed_in=False, env=NO | env, **sections) as made:
            yield made


Make = Callable[..., Any]


@pytest.fixture
def company(tmp_path: Path, logs: Path) -> Make:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[Company]:
        authority = trustme.CA()
        ca = tmp_path / "corp.pem"
        authority.cert_pem.write_to_path(str(ca))
        if options.pop("tls", False):
            import ssl

            options["tls"] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(options["tls"])
        async with simulated() as chatgpt:
            target = ("127.0.0.1", int(chatgpt.url.rpartition(":")[2]))
            async with proxying(Proxy(target, opens=authority, **options)) as proxy:
                yield Company(chatgpt, proxy, ca, tmp_path, logs)

    return make


async def ask(daemon: Daemon, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=daemon.base, trust_env=False, timeout=PATIENCE) as client:
        return await client.post("/v1/chat/completions", json=hello(**fields))


@pytest.mark.parametrize(
    ("options", "userinfo"),
    [
        ({}, ""), ({"credentials": ("me", "pa#s/w@rd")}, "me:pa#s/w@rd@"), ({"tls": True}, ""),
        ({"kind": "socks"}, ""), ({"kind": "socks", "credentials": ("me", "secret")}, "me:secret@"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
async def test_everything_goes_through_the_proxy(
    company: Make, options: dict[str, Any], userinfo: str, variable: str
) -> None:
    """Streams, pages and the sign-in, with a CA that only backend.ca_file names."""
    async with company(**options) as it:
        env = {variable: it.proxy.url(userinfo)}
        async with it.daemon(env, backend={"ca_file": str(it.ca)}) as daemon:
            for stream in (True, False, True):
                answer = await ask(daemon, stream=stream)
                assert answer.status_code == 200, answer.text
                assert answer.text.count("[DONE]") == stream
            assert (await codexctl(daemon, "refresh")).code == 0
            assert (await codexctl(daemon, "usage")).code == 0
            said = await codexctl(daemon, "doctor")
            assert said.code == 0, said.out
            assert f"{it.proxy.url()} (${variable}) for auth.test and chatgpt.test" in " ".join(said.out.split())
            assert f"{it.ca} (backend.ca_file)" in "".join(said.out.split()).replace("(backend", " (backend")
        assert set(it.proxy.asked) == {"chatgpt.test:443", "auth.test:443"}
        # Connections are held ready and used again: the streams had one or two between them.
        assert it.proxy.asked.count("chatgpt.test:443") <= 5
        assert "pa#s" not in daemon.log.read_text()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "CODEX_CA_CERTIFICATE"])
async def test_a_company_ca_in_the_environment(company: Make, variable: str) -> None:
    async with company() as it, it.daemon({"HTTPS_PROXY": it.proxy.url(), variable: str(it.ca)}) as daemon:
        assert (await ask(daemon)).status_code == 200


async def test_a_ca_that_is_added_while_it_runs(company: Make, tmp_path: Path) -> None:
    async with company() as it, it.daemon({"HTTPS_PROXY": it.proxy.url()}) as daemon:
        for stream in (True, False):
            answer = await ask(daemon, stream=stream)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (502, "certificate_not_trusted")
            assert f"through the proxy {it.proxy.url()} ($HTTPS_PROXY)" in error["message"]
            assert "update-ca-certificates" in error["message"]
        said = await codexctl(daemon, "doctor")
        assert said.code == 6
        assert "is not trusted" in said.out
        assert "resolv.conf" not in said.out
        path = tmp_path / "config.json"
        text = path.read_text()
        path.write_text(text.replace('"backend":{', '"backend":{"caFile":"/nowhere/corp.pem",'))
        refused = await codexctl(daemon, "reload")
        assert (refused.code, "backend.ca_file: /nowhere/corp.pem: No such file" in refused.err) == (5, True)
        path.write_text(text.replace('"backend":{', f'"backend":{{"caFile":"{it.ca}",'))
        assert (await codexctl(daemon, "reload")).code == 0
        assert (await ask(daemon)).status_code == 200


@pytest.mark.parametrize(
    ("options", "userinfo", "said"),
    [
        ({"credentials": ("u", "p")}, "", "asks for a user name and a password (407). Put them in $HTTPS_PROXY"),
        ({"credentials": ("u", "p")}, "u:wrong@", "does not accept the user name and the password (407)"),
        ({"answer": b"HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\nno way"}, "", "refuses to connect to chatgpt.test:443 (403 Forbidden)"),
        ({"answer": b"HTTP/1.1 502 Bad Gateway\r\n\r\n"}, "", "could not connect to chatgpt.test:443 (502 Bad Gateway)"),
        ({"kind": "socks", "answer": b"\x05\x02\x00\x01" + bytes(6)}, "", "(not allowed by its rules)"),
    ],
)  # fmt: skip
async def test_what_a_proxy_refuses_is_told_as_its_refusal(
    company: Make, options: dict[str, Any], userinfo: str, said: str
) -> None:
    async with company(**options) as it, it.daemon({"HTTPS_PROXY": it.proxy.url(userinfo)}) as daemon:
        for stream in (True, False):
            answer = await ask(daemon, stream=stream)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], said in error["message"]) == (502, "proxy_failed", True), error
        examined = await codexctl(daemon, "doctor")
        words = " ".join(examined.out.split())
        assert examined.code == 6
        assert it.proxy.url() in words
        assert "resolv.conf" not in words
        login = await codexctl(daemon, "login", "--device")
        assert (login.code, "the proxy" in login.err) == (6, True), login.err
        await daemon.logged("the proxy")


@pytest.mark.parametrize(
    ("env", "works"),
    [
        ({"NO_PROXY": "[::1]"}, True), ({"NO_PROXY": "fd00::/8,::1"}, True), ({"no_proxy": "[,/,:"}, True),
        ({"ALL_PROXY": "foo://p:1", "NO_PROXY": "127.0.0.0/8"}, True), ({"ALL_PROXY": "foo://p:1"}, False),
        ({"HTTP_PROXY": "http://u:pa#ss@"}, False), ({"HTTP_PROXY": "http://[::1"}, False), ({"HTTPS_PROXY": "::"}, True),
        ({"SSL_CERT_FILE": "/nowhere.pem"}, True), ({"CODEX_CA_CERTIFICATE": "/etc"}, True),
    ],
)  # fmt: skip
async def test_no_variable_ends_the_daemon(tmp_path: Path, logs: Path, env: dict[str, str], works: bool) -> None:
    """What it does not need does not stop it; what it needs is named, in the log and to the client."""
    async with simulated() as chatgpt:
        state = tmp_path / "state"
        state.mkdir()
        store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        async with running(tmp_path, logs, chatgpt, signed_in=False, env=NO | env) as daemon:
            answer = await ask(daemon)
            assert (answer.status_code == 200) == works, answer.text
            wrong = [
                name
                for name in ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "CODEX_CA_CERTIFICATE")
                if name in env
            ]
            for name in wrong:
                assert f"${name}: " in await daemon.logged("fail until it is fixed")
                if not works:
                    assert f"${name}: " in answer.json()["error"]["message"]
            assert "Traceback" not in daemon.log.read_text()
