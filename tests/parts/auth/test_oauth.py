"""What goes to the issuer and what its answers mean, against what the official client was seen to send."""

import base64
import hashlib
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest

from codexd.auth import oauth
from codexd.auth.oauth import Code, Denied, Device, DeviceGrant, Pending, Stray
from codexd.auth.store import Credentials, StoreError, from_auth_json
from support.daemon import ROOT
from support.secrets import MARKER, access_token

CAPTURES = ROOT.parent / "shared" / "upstream" / "captures" / "auth"
captured = pytest.mark.skipif(not CAPTURES.exists(), reason="the captures are not here")


def authorization(state: str = "S" * 43, verifier: str = "V" * 86) -> oauth.Authorization:
    return oauth.authorization(
        "https://auth.openai.com",
        client_id="app_EMoamEEZ73f0CkXaXp7hrann",
        redirect_uri="http://127.0.0.1:1455/auth/callback",
        originator="codex_cli_rs",
        state=state,
        verifier=verifier,
    )


def test_the_challenge_is_the_hash_of_the_verifier() -> None:
    # The example of RFC 7636, appendix B.
    assert oauth.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") == (
        "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )
    query = dict(parse_qsl(urlsplit(authorization().url).query))
    digest = hashlib.sha256(b"V" * 86).digest()
    assert query["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")


@captured
def test_the_address_is_the_official_clients() -> None:
    capture = msgspec.json.decode((CAPTURES / "authorize_url.json").read_bytes())
    ours = authorization()
    challenge = oauth.challenge("V" * 86)
    wanted = capture["url_form"].replace("code_challenge=<random>", f"code_challenge={challenge}")
    assert ours.url == wanted.replace("state=<random>", f"state={'S' * 43}")


@captured
@pytest.mark.parametrize(
    ("name", "code", "redirect_uri", "verifier"),
    [
        (
            "browser_code_exchange",
            "code_555",
            "http://127.0.0.1:1455/auth/callback",
            "zPChuaaQ2TvIXEC4hEvbaUSGHF6xyHEjPzc75GkcBY3oEpo9RI8HEROh32-HFQFGB6rSlE3MdMp5sf4oML06bA",
        ),
        ("device_exchange", "ac_777", "https://auth.openai.com/deviceauth/callback", "VERIF"),
    ],
)
def test_the_exchange_is_the_official_clients(name: str, code: str, redirect_uri: str, verifier: str) -> None:
    capture = msgspec.json.decode((CAPTURES / f"{name}.json").read_bytes())
    form = oauth.exchange_form(
        code, client_id="app_EMoamEEZ73f0CkXaXp7hrann", redirect_uri=redirect_uri, verifier=verifier
    )
    assert list(form.items()) == parse_qsl(capture["form_body"])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("code=c1&state=s", Code("c1")),
        ("state=s&code=c1&scope=x+y", Code("c1")),
        ("error=access_denied&error_description=The+user+declined&state=s", Denied("The user declined (access_denied)")),
        ("error=server_error&state=s", Denied("server_error")),
        ("code=c1&state=other", Stray("its state parameter belongs to another sign-in")),
        ("code=c1", Stray("it contains no state parameter")),
        ("error=access_denied", Stray("it contains no state parameter")),
        ("rubbish", Stray("it contains no state parameter")),
        ("state=s", Stray("it contains no code")),
        ("code=&state=s", Stray("it contains no code")),
        ("code=c1&state=s&state=%F6", Stray("its state parameter belongs to another sign-in")),
    ],
)  # fmt: skip
def test_what_the_browser_brings_back(query: str, found: Code | Denied | Stray) -> None:
    assert oauth.callback(query, "s") == found


@pytest.mark.parametrize(
    "pasted",
    [
        "http://127.0.0.1:1455/auth/callback?code=c1&state=s",
        "  <http://127.0.0.1:1455/auth/callback?code=c1&state=s>\n",
        '"?code=c1&state=s"',
        "code=c1&state=s",
        "127.0.0.1:1455/auth/callback?code=c1&state=s#fragment",
    ],
)
def test_what_people_paste(pasted: str) -> None:
    assert oauth.callback(oauth.query_of(pasted), "s") == Code("c1")


@pytest.mark.parametrize(
    ("body", "device"),
    [
        ('{"device_auth_id":"d","user_code":"A-B","interval":"7"}', Device("d", "A-B", 7)),
        ('{"device_auth_id":"d","usercode":"A-B","interval":3}', Device("d", "A-B", 3)),
        ('{"device_auth_id":"d","user_code":"A-B"}', Device("d", "A-B", 5)),
        ('{"device_auth_id":"d","user_code":"A-B","interval":"soon"}', Device("d", "A-B", 5)),
        ('{"device_auth_id":"d","user_code":"A-B","interval":"0.01"}', Device("d", "A-B", 1)),
        ('{"device_auth_id":"d","user_code":"A-B","interval":"86400"}', Device("d", "A-B", 60)),
    ],
)
def test_the_interval_is_a_string_and_has_its_ends(body: str, device: Device) -> None:
    assert oauth.device(body.encode()) == device


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"device_auth_id":"d"}', b'{"device_auth_id":"d","user_code":"\\u001b[2J"}']
)
def test_a_start_without_a_code_is_refused(body: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        oauth.device(body)


def said(code: str) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": "M"}})


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (403, said("deviceauth_authorization_pending"), Pending(slower=False)),
        (404, b"", Pending(slower=False)),
        (403, b"<html>", Pending(slower=False)),
        (403, said("slow_down"), Pending(slower=True)),
        (400, said("slow_down"), Pending(slower=True)),
        (400, said("authorization_pending"), Pending(slower=False)),
        (429, b"", Pending(slower=True)),
        (500, b"", Pending(slower=True)),
        (403, said("access_denied"), Denied("the request was denied")),
        (400, b'{"error": "expired_token"}', Denied("the code has expired")),
        (400, said("other"), Denied("M (status 400, other)")),
        (410, b"", Denied("no reason given (status 410)")),
    ],
)
def test_what_a_poll_means(status: int, body: bytes, found: Pending | Denied) -> None:
    assert oauth.device_poll(status, body) == found


def test_a_poll_that_is_granted() -> None:
    body = b'{"authorization_code":"ac","code_challenge":"c","code_verifier":"v"}'
    assert oauth.device_poll(200, body) == DeviceGrant("ac", "v")
    unreadable = oauth.device_poll(200, b"{}")
    assert isinstance(unreadable, Denied)
    assert "cannot be read" in unreadable.why


def test_the_claims_tell_who_it_is() -> None:
    claims = {"https://api.openai.com/profile": {"email": "p@example.test"}, "https://api.openai.com/auth": {}}
    payload = base64.urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=").decode()
    by_profile = Credentials(access_token=f"e30.{payload}.x")
    assert (by_profile.email(), by_profile.plan()) == ("p@example.test", None)
    assert Credentials(access_token="opaque").email() is None


# --- the official client's file


@captured
@pytest.mark.parametrize("name", ["auth.json.browser_login.json", "auth.json.device_login.json"])
def test_the_official_clients_logins_import(name: str) -> None:
    sample = (CAPTURES / name).read_text()
    claims = msgspec.json.decode((CAPTURES / "jwt_claims_used_in_lab.json").read_bytes())
    for token in ("id_token", "access_token"):
        payload = base64.urlsafe_b64encode(msgspec.json.encode(claims[token])).rstrip(b"=").decode()
        sample = sample.replace(f"<{token} jwt>", f"e30.{payload}.{MARKER}")
    found = from_auth_json(sample.replace("<opaque>", f"rt_{MARKER}").encode())
    assert (found.account(), found.email(), found.plan()) == ("acct-0001", "dev@example.test", "plus")
    assert found.refresh_token == f"rt_{MARKER}"
    assert found.expires_at == 1_796_190_295
    assert found.updated_at is not None
    assert 1_795_320_000 < found.updated_at < 1_795_330_000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an auth.json"),
        ("[]", "not an auth.json"),
        ('{"tokens": {}}', "not an auth.json"),
        ('{"OPENAI_API_KEY": "sk-x"}', "no ChatGPT sign-in"),
        ('{"tokens": null}', "no ChatGPT sign-in"),
        ('{"tokens": {"access_token": "x"}}', "not issued by ChatGPT"),
        ('{"tokens": {"access_token": "a b"}}', "access_token contains characters"),
        ('{"tokens": {"access_token": "a", "refresh_token": "…"}}', "refresh_token contains characters"),
    ],
)
def test_what_cannot_be_imported_says_why(text: str, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        from_auth_json(text.encode())


def test_an_import_without_optional_keys() -> None:
    found = from_auth_json(msgspec.json.encode({"tokens": {"access_token": access_token(5e9)}}))
    assert (found.refresh_token, found.updated_at, found.expires_at) == (None, None, 5e9)
