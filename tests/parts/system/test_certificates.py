"""Whose certificates are trusted, with real handshakes in memory."""

import ssl
from pathlib import Path

import pytest
import trustme

from codexd.system import certificates
from codexd.system.certificates import CannotTrust

HOST = "chatgpt.test"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pem(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "corp.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


def trusts(context: ssl.SSLContext, authority: trustme.CA) -> bool:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(server)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(down, up, server_hostname=HOST)
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


def context(environ: dict[str, str], ca_file: str | None = None) -> ssl.SSLContext:
    return certificates.context(certificates.store(environ, ca_file))


def test_a_companys_authority_is_trusted_where_it_is_named(
    authority: trustme.CA, pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert not trusts(context({}), authority)
    assert trusts(context({}, str(pem)), authority)
    assert trusts(context({"CODEX_CA_CERTIFICATE": str(pem)}), authority)
    assert trusts(context({"SSL_CERT_FILE": str(pem)}), authority)
    assert trusts(context({"SSL_CERT_DIR": "/nowhere"}, str(pem)), authority)


def test_a_folder_of_hashed_certificates(authority: trustme.CA, pem: Path, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    folder.mkdir()
    name = _hash_of(pem)
    (folder / f"{name}.0").write_bytes(pem.read_bytes())
    assert trusts(context({"SSL_CERT_DIR": str(folder)}), authority)
    assert trusts(context({"SSL_CERT_DIR": f"/nowhere:{folder}"}), authority)


def _hash_of(pem: Path) -> str:
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed here")
    done = subprocess.run(
        ["openssl", "x509", "-hash", "-noout", "-in", str(pem)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_systems_store_counts(
    authority: trustme.CA, pem: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenSSL finds it; else at a distribution's place; else certifi's list."""
    folder = tmp_path / "hashed"
    folder.mkdir()
    (folder / f"{_hash_of(pem)}.0").write_bytes(pem.read_bytes())
    defaults = ssl.get_default_verify_paths
    hashed = defaults()._replace(openssl_cafile="/nowhere", openssl_capath=str(folder))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: hashed)
    assert trusts(context({}), authority)
    assert trusts(context({"SSL_CERT_DIR": "/nowhere"}), authority), "a folder that is not there counts for nothing"
    monkeypatch.setattr(ssl, "get_default_verify_paths", defaults)
    empty = ssl.get_default_verify_paths()._replace(openssl_cafile="/nowhere", openssl_capath=str(tmp_path / "empty"))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: empty)
    monkeypatch.setattr(certificates, "SYSTEM_FILES", ("/nowhere", str(pem)))
    assert trusts(context({}), authority)
    monkeypatch.setattr(certificates, "SYSTEM_FILES", ())
    found = context({})
    assert not trusts(found, authority)
    assert found.cert_store_stats()["x509_ca"] > 50


def test_a_missing_file_is_named_with_who_asked_for_it(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_bytes(b"\x30\x82")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for path, said in (
        (tmp_path / "gone.pem", "No such file or directory. Set it to a PEM file"),
        (tmp_path, "Is a directory"),
        (garbage, "no PEM certificate in it. Convert it"),
        (broken, "cannot be read as certificates"),
    ):
        for environ, ca_file, source in (
            ({"SSL_CERT_FILE": str(path)}, None, "$SSL_CERT_FILE"),
            ({"CODEX_CA_CERTIFICATE": str(path)}, None, "$CODEX_CA_CERTIFICATE"),
            ({}, str(path), "backend.ca_file"),
        ):
            with pytest.raises(CannotTrust) as caught:
                context(environ, ca_file)
            assert str(caught.value).startswith(f"{source}: {path}: ")
            assert said in str(caught.value)


def test_it_is_said_what_is_trusted() -> None:
    assert certificates.store({}, None).describe() == "the system's certificates"
    found = certificates.store({"CODEX_CA_CERTIFICATE": "/a.pem"}, "/b.pem").describe()
    assert found == "the system's certificates and /a.pem ($CODEX_CA_CERTIFICATE) and /b.pem (backend.ca_file)"
    assert certificates.store({"SSL_CERT_FILE": "/c.pem"}, None).describe() == "/c.pem ($SSL_CERT_FILE)"
