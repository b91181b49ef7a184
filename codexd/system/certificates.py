"""Trusted certificates: the system's store, and additions from the environment and the configuration.

httpx trusts only certifi's list, so a company's own CA had no effect even if it was installed in the system. Here the
system's store is used, or certifi's list if there is no store (a container without ca-certificates, a Python built for
another system). truststore would do the same on Linux, but on macOS it verifies in a blocking handshake, which these
non-blocking sockets do not have.
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SYSTEM_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS, BSD
)


class CannotTrust(Exception):
    """A certificate file cannot be used. The message names the file, the setting and the next step."""


class Store(NamedTuple):
    """Sources of trusted CAs, each with the setting that names it. ``extra`` is added to ``base``.

    ``base`` holds files and folders of hashed certificates; if it is empty, the system's own store is used.
    """

    base: list[tuple[Path, str]]
    extra: list[tuple[Path, str]]

    def describe(self) -> str:
        """Returns a text such as ``the system's certificates and /etc/corp.pem (backend.ca_file)``."""
        base = [f"{path} ({source})" for path, source in self.base] or ["the system's certificates"]
        return " and ".join([*base, *(f"{path} ({source})" for path, source in self.extra)])


def store(environ: Mapping[str, str], ca_file: str | None) -> Store:
    """Returns the sources to use, without reading them. ``ca_file`` is ``backend.ca_file``.

    ``$SSL_CERT_FILE`` and ``$SSL_CERT_DIR`` replace the system's store, as in OpenSSL; the other two add to it. The
    official client also reads ``$CODEX_CA_CERTIFICATE``.
    """
    base = [(Path(part), "$SSL_CERT_FILE") for part in [environ.get("SSL_CERT_FILE", "")] if part]
    # Folders that are missing or have no hashed certificates are ignored: some tools set them without a check.
    folders = [Path(part) for part in environ.get("SSL_CERT_DIR", "").split(os.pathsep) if part]
    base += [(folder, "$SSL_CERT_DIR") for folder in folders if _is_hashed(folder)]
    extra = []
    if named := environ.get("CODEX_CA_CERTIFICATE"):
        extra.append((Path(named), "$CODEX_CA_CERTIFICATE"))
    if ca_file is not None:
        extra.append((Path(ca_file).expanduser(), "backend.ca_file"))
    return Store(base, extra)


def problems(found: Store) -> list[CannotTrust]:
    """Returns a fault for each file that is missing or holds no certificate. The certificates are not parsed."""
    return [fault for path, source in [*found.base, *found.extra] if (fault := _fault(path, source)) is not None]


def _fault(path: Path, source: str) -> CannotTrust | None:
    if source == "$SSL_CERT_DIR":
        return None
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a file name"
        return CannotTrust(f"{source}: {path}: {why}. Set it to a PEM file that codexd can read, or unset it.")
    if b"-----BEGIN " not in data:
        return CannotTrust(f"{source}: {path}: no PEM certificate in it. Convert it with openssl x509 -outform PEM.")
    return None


def context(found: Store) -> ssl.SSLContext:
    """Returns a client's TLS context that trusts the store. Raises CannotTrust."""
    for fault in problems(found):
        raise fault
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if not found.base:
        try:
            _trust_the_system(made)
        except (OSError, ssl.SSLError) as error:
            raise CannotTrust(
                "The system's certificates cannot be read. Reinstall ca-certificates, or set $SSL_CERT_FILE."
            ) from error
    for path, source in [*found.base, *found.extra]:
        try:
            if source == "$SSL_CERT_DIR":
                made.load_verify_locations(capath=path)
            else:
                made.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise CannotTrust(
                f"{source}: {path}: it cannot be read as certificates. Check that it is a complete PEM file."
            ) from error
    return made


def _trust_the_system(made: ssl.SSLContext) -> None:
    """Loads OpenSSL's default places if they hold anything. A folder of hashed files, as on Debian, is read lazily."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    if file.is_file():
        made.load_verify_locations(cafile=file)
    if _is_hashed(folder):
        made.load_verify_locations(capath=folder)
    elif not file.is_file():
        place = next((place for place in SYSTEM_FILES if Path(place).is_file()), None)
        if place is None:
            import certifi  # httpx brings it

            place = certifi.where()
        made.load_verify_locations(cafile=place)


def _is_hashed(folder: Path) -> bool:
    try:
        return any(folder.glob("*.[0-9]"))
    except (OSError, ValueError):
        return False
