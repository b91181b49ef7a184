"""What is said to a proxy, cut at every byte, and what it may answer."""

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.upstream import tunnel
from codexd.upstream.proxies import parse
from codexd.upstream.tunnel import CannotConnect

OK = b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"


def through(url: str, answers: list[bytes], cuts: list[int], host: str = "chatgpt.com") -> bytes:
    """What was sent, when each of it was answered so, in such pieces, and the end followed."""
    steps = tunnel.handshake(parse(url, "$HTTPS_PROXY"), host, 443)
    sent = next(steps)
    try:
        for answer in answers:
            ends = [*sorted({cut for cut in cuts if 0 < cut < len(answer)}), len(answer)]
            for at, end in pairwise([0, *ends]):
                sent += steps.send(answer[at:end])
        steps.send(b"")
    except StopIteration:
        return sent
    raise AssertionError("it waits for more than the end")


def why(url: str, answers: list[bytes]) -> CannotConnect:
    with pytest.raises(CannotConnect) as caught:
        through(url, answers, [])
    for cut in range(1, max(map(len, answers), default=0)):
        with pytest.raises(CannotConnect) as again:
            through(url, answers, [cut])
        assert str(again.value) == str(caught.value)
    assert isinstance(caught.value, httpx.ConnectError)
    assert "sEcReT" not in str(caught.value)
    return caught.value


@given(st.lists(st.integers(1, 60)))
def test_connect(cuts: list[int]) -> None:
    sent = through("http://u:p@p:1", [OK], cuts)
    assert (
        sent == b"CONNECT chatgpt.com:443 HTTP/1.1\r\nHost: chatgpt.com:443\r\nProxy-Authorization: Basic dTpw\r\n\r\n"
    )
    assert through("http://p:1", [b"HTTP/1.1 100 Continue\r\n\r\n" + OK], cuts).count(b"\r\n") == 3
    assert through("http://p:1", [b"HTTP/1.0 200\r\n\r\n"], cuts, "::1").startswith(b"CONNECT [::1]:443 ")


@pytest.mark.parametrize(
    ("url", "answer", "said"),
    [
        ("http://p:1", b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", "asks for a user name and a password (407). Put them in $HTTPS_PROXY: http://USER:PASSWORD@p:1."),
        ("http://p:1", b"HTTP/1.1 407 x\r\n\r\n", "asks for a user name"),
        ("http://u:sEcReT@p:1", b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", "does not accept the user name and the password (407). Correct them"),
        ("http://p:1", b"HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n", "asks for Negotiate, NTLM authentication (407), but codexd supports only Basic"),
        ("http://p:1", b"HTTP/1.1 407 x\r\nProxy-Authenticate: NTLM\r\nProxy-Authenticate: Basic realm=\"a, b\"\r\n\r\n", "asks for a user name"),
        ("http://p:1", b"HTTP/1.1 403 x\r\n\r\nno", "refuses to connect to chatgpt.com:443 (403 Forbidden). Ask its administrator to allow chatgpt.com"),
        ("http://p:1", b"HTTP/1.1 502 x\r\n\r\n", "could not connect to chatgpt.com:443 (502 Bad Gateway)"),
        ("http://p:1", b"HTTP/1.1 599 x\r\n\r\n", "(599)"),
        ("http://p:1", b"HTTP/1.1 301 x\r\n\r\n", "(301 Moved Permanently)"),
        ("http://p:1", b"", "closed the connection"),
        ("socks5://p", b"", "closed the connection"),
        ("socks5://p", b"\x05\xff", "asks for a user name and a password. Put them in $HTTPS_PROXY: socks5://USER:PASSWORD@p:1080."),
        ("socks5://u:sEcReT@p", b"\x05\x02|\x01\x01", "does not accept the user name and the password"),
        ("socks5://u:sEcReT@p", b"\x05\xff", "does not accept"),
        ("socks5://p", b"\x05\x00|\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00", "could not connect to chatgpt.com:443 (connection refused)"),
        ("socks5://p", b"\x05\x00|\x05\x02\x00\x03\x01a\x00\x00", "(not allowed by its rules). Ask its administrator"),
        ("socks5://p", b"\x05\x00|\x05\x7f\x00\x04" + bytes(18), "(code 127)"),
    ],
)  # fmt: skip
def test_a_refusal_is_told(url: str, answer: bytes, said: str) -> None:
    error = why(url, answer.split(b"|") if answer else [])
    assert said in str(error)
    assert str(error).startswith(f"the proxy {parse(url, '').address} ($HTTPS_PROXY)")
    assert error.code == "proxy_failed"


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        ("http://p:1", b"\x05\x00"), ("http://p:1", b"SSH-2.0-x\r\n\r\n"), ("http://p:1", OK + b"early"),
        ("http://p:1", b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000),
        ("socks5://p", b"HTTP/1.1 400 Bad\r\n\r\n"), ("socks5://p", b"\x04\x00"), ("socks5://p", b"\x05\x00|\x05\x00\x00\x09\x00"),
        ("socks5://p", b"\x05\x00|\x05\x00\x00\x01" + bytes(6) + b"early"),
    ],
)  # fmt: skip
def test_what_is_no_proxy_of_that_kind(url: str, answer: bytes) -> None:
    with pytest.raises(CannotConnect, match=r"does not answer as|closed the connection"):
        through(url, answer.split(b"|"), [])


@given(st.lists(st.integers(1, 30)), st.sampled_from([b"\x01\x7f\x00\x00\x01", b"\x03\x04corp", b"\x04" + bytes(16)]))
def test_socks(cuts: list[int], bound: bytes) -> None:
    reply = b"\x05\x00\x00" + bound + b"\x00\x50"
    plain = through("socks5://p", [b"\x05\x00", reply], cuts)
    assert plain == b"\x05\x01\x00\x05\x01\x00\x03\x0bchatgpt.com\x01\xbb"
    named = through("socks5h://u:pw@p", [b"\x05\x02", b"\x01\x00", reply], cuts)
    assert named == b"\x05\x01\x02\x01\x01u\x02pw\x05\x01\x00\x03\x0bchatgpt.com\x01\xbb"
    assert (
        through("socks5://p", [b"\x05\x00", reply], cuts, "::1")[3:]
        == b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x01\xbb"
    )
    assert (
        through("socks5://p", [b"\x05\x00", reply], cuts, "1.2.3.4")[3:] == b"\x05\x01\x00\x01\x01\x02\x03\x04\x01\xbb"
    )


def test_what_socks_cannot_carry_is_told() -> None:
    with pytest.raises(CannotConnect, match="at most 255 bytes"):
        through(f"socks5://u:{'p' * 256}@p", [b"\x05\x02"], [])
    with pytest.raises(CannotConnect, match="host unreachable"):
        through("socks5://p", [b"\x05\x00", b"\x05\x04\x00\x01" + bytes(6)], [], "a" * 300)
