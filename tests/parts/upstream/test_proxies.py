"""Which proxy the environment names, and for whom not: whatever is in the variables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.upstream import proxies
from codexd.upstream.proxies import BadProxy, Proxy, ProxyRoute, parse, route

HTTPS = ("https", "chatgpt.com", 443)


@pytest.mark.parametrize(
    ("environ", "address", "source"),
    [
        ({"HTTPS_PROXY": "http://p:3128"}, "http://p:3128", "$HTTPS_PROXY"),
        ({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://high:1"}, "http://low:1", "$https_proxy"),
        ({"https_proxy": " ", "HTTPS_PROXY": "http://high:1"}, "http://high:1", "$HTTPS_PROXY"),
        ({"ALL_PROXY": "socks5://p"}, "socks5://p:1080", "$ALL_PROXY"),
        ({"ALL_PROXY": "socks5h://p:9050"}, "socks5h://p:9050", "$ALL_PROXY"),
        ({"all_proxy": "http://a", "https_proxy": "http://b"}, "http://b:80", "$https_proxy"),
        ({"https_proxy": "p:3128"}, "http://p:3128", "$https_proxy"),
        ({"https_proxy": "HTTP://p:3128/"}, "http://p:3128", "$https_proxy"),
        ({"https_proxy": "https://p"}, "https://p:443", "$https_proxy"),
        ({"https_proxy": "http://[::1]:8080"}, "http://[::1]:8080", "$https_proxy"),
        ({"https_proxy": "http://[fd00::1]"}, "http://[fd00::1]:80", "$https_proxy"),
        ({"https_proxy": "http://u:p%23w@p:1"}, "http://p:1", "$https_proxy"),
    ],
)  # fmt: skip
def test_a_proxy_is_found(environ: dict[str, str], address: str, source: str) -> None:
    found = route(environ, HTTPS)
    assert found.proxy is not None
    assert (found.proxy.address, found.proxy.source, found.why) == (address, source, source)


@pytest.mark.parametrize("environ", [{}, {"HTTP_PROXY": "http://p"}, {"https_proxy": ""}, {"NO_PROXY": "x"}])
def test_there_is_none(environ: dict[str, str]) -> None:
    assert route(environ, HTTPS) == ProxyRoute(None, "no proxy variable is set")


@pytest.mark.parametrize(
    ("userinfo", "username", "password"),
    [
        ("u:p", b"u", b"p"), ("u", b"u", b""), ("u:", b"u", b""), ("u:a#b", b"u", b"a#b"), ("u:a/b?c", b"u", b"a/b?c"),
        ("u:a@b", b"u", b"a@b"), ("u:a:b", b"u", b"a:b"), ("u:a%40b", b"u", b"a@b"), ("u:50%", b"u", b"50%"),
        ("CORP\\u:p", b"CORP\\u", b"p"), ("u:pä", b"u", "pä".encode()), ("u:p\udce4", b"u", b"p\xe4"),
    ],
)  # fmt: skip
def test_credentials_as_users_write_them(userinfo: str, username: bytes, password: bytes) -> None:
    found = parse(f"http://{userinfo}@proxy:3128", "$https_proxy")
    assert (found.username, found.password, found.host, found.port) == (username, password, "proxy", 3128)
    assert "p" not in repr(found).replace("http://proxy:3128", "").replace("Proxy", "").replace("https_proxy", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo://p", 'unsupported proxy scheme "foo"'), ("socks4://p", "Use http://, https://, socks5:// or socks5h://"),
        ("http://", "no host and port in it"), ("http://p:x", "http://HOST:PORT"), ("http://p:0", "port 0 is out"),
        ("http://p:70000", "port 70000 is out"), ("http://[::1", "http://HOST:PORT"), ("http://a b:1", "http://HOST:PORT"),
        ("http://fd00::1:80", "http://HOST:PORT"), ("http://prö:1", "http://HOST:PORT"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_variable(text: str, said: str) -> None:
    with pytest.raises(BadProxy) as caught:
        parse(text, "$ALL_PROXY")
    assert str(caught.value).startswith("$ALL_PROXY: ")
    assert said in str(caught.value)
    assert [str(each) for each in proxies.problems({"ALL_PROXY": text})] == [str(caught.value)]
    # Who needs it, and nobody else, meets it.
    with pytest.raises(BadProxy):
        route({"ALL_PROXY": text}, HTTPS)
    assert route({"ALL_PROXY": text, "https_proxy": "http://p"}, HTTPS).proxy is not None
    assert route({"ALL_PROXY": text, "no_proxy": "chatgpt.com"}, HTTPS).proxy is None


def test_a_password_is_in_no_message() -> None:
    for text in (
        "foo://u:sEcReT@p", "http://u:sEcReT@p:x", "http://u:sEcReT@", "http://u:sEcR@eT#@p:99999", "http://u:sEcReT",
        "http://u:sEcReT%40proxy:3128", "u:sEcR://et@p:1", "http:/u:sEcReT@p:1", "http://u:sEcReT@p:" + "9" * 5000,
    ):  # fmt: skip
        with pytest.raises(BadProxy) as caught:
            parse(text, "$ALL_PROXY")
        assert "sEc" not in str(caught.value)


@pytest.mark.parametrize(
    ("no_proxy", "host", "covered"),
    [
        ("*", "chatgpt.com", True), ("chatgpt.com", "chatgpt.com", True), ("CHATGPT.com", "chatgpt.com", True),
        (".com", "chatgpt.com", True), ("com", "chatgpt.com", True), ("gpt.com", "chatgpt.com", False),
        (".chatgpt.com", "chatgpt.com", True), ("*.chatgpt.com", "ab.chatgpt.com", True), ("chatgpt.com.", "chatgpt.com", True),
        ("other, chatgpt.com", "chatgpt.com", True), ("other chatgpt.com", "chatgpt.com", True), (",,", "chatgpt.com", False),
        ("chatgpt.com:443", "chatgpt.com", True), ("chatgpt.com:8443", "chatgpt.com", False),
        ("127.0.0.1", "127.0.0.1", True), ("127.0.0.0/8", "127.1.2.3", True), ("10.0.0.0/8", "127.0.0.1", False),
        ("127.0.0.1:443", "127.0.0.1", True), ("127.0.0.1:80", "127.0.0.1", False),
        ("[::1]", "::1", True), ("::1", "::1", True), ("[::1]:443", "::1", True), ("[::1]:80", "::1", False),
        ("fd00::/8", "fd12::1", True), ("[fd00::]/8", "fd12::1", True), ("fd00::/8", "fe80::1", False),
        ("10.0.0.0/8", "::ffff:10.1.1.1", True), ("1.2.3.4/8", "1.9.9.9", True), ("127.0.0.1", "chatgpt.com", False),
        ("", "chatgpt.com", False), ("/", "chatgpt.com", False), ("[", "chatgpt.com", False), ("a/b", "127.0.0.1", False),
    ],
)  # fmt: skip
def test_what_is_reached_directly(no_proxy: str, host: str, covered: bool) -> None:
    found = route({"https_proxy": "http://p", "NO_PROXY": no_proxy}, ("https", host, 443))
    assert (found.proxy is None) == covered
    if covered:
        assert found.why.endswith("in $NO_PROXY")


@given(st.text(), st.text(), st.sampled_from(["chatgpt.com", "::1", "127.0.0.1", "a"]))
def test_nothing_in_the_environment_is_a_crash(proxy: str, no_proxy: str, host: str) -> None:
    environ = {"ALL_PROXY": proxy, "NO_PROXY": no_proxy}
    proxies.problems(environ)
    try:
        found = route(environ, ("https", host, 443))
    except BadProxy as error:
        assert error.source == "$ALL_PROXY"
    else:
        assert found.proxy is None or isinstance(found.proxy, Proxy)
