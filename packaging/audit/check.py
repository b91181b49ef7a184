"""``make audit``: the locked packages and this Python, against the dated list beside this file."""

import platform
import re
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def numbers(version: str) -> tuple[int, ...]:
    """Returns the numbers of a version, without what follows them."""
    return tuple(map(int, re.findall(r"\d+", version.partition("+")[0])[:4]))


def is_affected(version: str, affected: str) -> bool:
    """Returns whether a version is in one of the ranges (``>=3.11,<3.11.10 || <3.10.1``)."""
    compare = {"<": tuple.__lt__, ">=": tuple.__ge__, "==": tuple.__eq__}
    for part in affected.split("||"):
        bounds = re.findall(r"(<|>=|==)\s*([\w.]+)", part)
        if bounds and all(compare[how](numbers(version), numbers(bound)) for how, bound in bounds):
            return True
    return False


def locked(text: str) -> dict[str, str]:
    """Returns the versions of a lock file."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", text, re.MULTILINE))


def main() -> int:
    known = tomllib.loads((HERE / "advisories.toml").read_text())
    versions = locked((HERE.parent.parent / "requirements.lock").read_text())
    versions["python"] = platform.python_version()
    found = [
        each
        for each in known["advisory"]
        if each["package"] in versions and is_affected(versions[each["package"]], each["affected"])
    ]
    sys.stdout.write(f"{len(versions)} versions, {len(known['advisory'])} advisories of {known['dated']}\n")
    for each in found:
        version = versions[each["package"]]
        sys.stdout.write(f"{each['package']} {version}: {each['id']}, {each['what']} ({each['affected']})\n")
    return int(any(each["package"] != "python" for each in found))


if __name__ == "__main__":
    sys.exit(main())
