"""Why an operation failed, in words for people: without numbers, types and names of the code."""

import re

import msgspec

_KINDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


def reason_of(error: BaseException) -> str:
    """Returns the reason: of an OSError its text and its file, of JSON in another shape the member that is wrong."""
    if isinstance(error, msgspec.ValidationError):
        said, place = place_of(error)
        return f"{place}: {said[:1].lower()}{said[1:]}" if place else said[:1].lower() + said[1:]
    if (untrusted := getattr(error, "verify_message", None)) is not None:
        return f"the certificate is not trusted: {untrusted}"
    if isinstance(error, TimeoutError) and not error.strerror:
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        said = re.sub(r"^\[[^]]*\] | \(_\w+\.c:\d+\)$", "", error.strerror)  # OpenSSL's names and lines
        return f"{said}: {error.filename}" if error.filename else said
    return str(error) or ("no answer in time" if "Timeout" in type(error).__name__ else type(error).__name__)


def quoted(value: object) -> str:
    """Returns a name or value from elsewhere in quotation marks, with escapes for what a terminal would not print."""
    text = str(value)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return f'"{text}"'


def place_of(error: msgspec.ValidationError, *, plain: bool = True) -> tuple[str, str]:
    """Returns the message and the place, such as ``messages[0].role``; the place is empty for the root.

    ``plain``: in JSON's words, otherwise in msgspec's own.
    """
    said, _, place = str(error).partition(" - at `$")
    return _plainly(said) if plain else said, place.rstrip("`").removeprefix(".")


def _plainly(said: str) -> str:
    """Returns msgspec's message in JSON's words, without its names of types and without patterns.

    ``Expected `str | null`, got `int``` becomes ``Expected a string or null, got an integer``.
    """
    if not said.startswith("Expected "):
        said = said.replace("Object missing required", "Missing required").replace("Object contains unk", "Unk")
        return re.sub(r"Invalid (?:enum )?value '?(.*?)'?$", r'Unknown value "\1"', said.replace("`", '"'))
    said = re.sub(r"`([a-z]+(?: \| [a-z]+)*)`", lambda found: _either(found[1].split(" | ")), said)
    return re.sub(r" matching regex '.*'", " in another format", said)


def _either(kinds: list[str]) -> str:
    *others, last = (_KINDS.get(kind, kind) for kind in kinds)
    return f"{', '.join(others)} or {last}" if others else last
