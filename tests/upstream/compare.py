"""Two captures' shapes, compared field by field. Pure functions, but for reading the folders."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from upstream.recorder import Json

ORDERED = ("headers", "body")
"""Objects whose order of fields the client decides; that of others, such as client_metadata, is chance."""

SHOWN = 100
"""Characters of a value that a line shows."""


class Difference(NamedTuple):
    """``where`` is a path such as ``POST chatgpt.com/….body.reasoning.effort``."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def read(folder: Path) -> dict[str, Any]:
    """A capture by its files' names without their ending."""
    return {path.stem: msgspec.json.decode(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def captures(old: Mapping[str, Any], new: Mapping[str, Any], left_out: Iterable[str] = ()) -> list[str]:
    """What differs between two captures, as lines. The same difference in several scenarios is one line.

    ``left_out`` are scenarios that could not be run this time.
    """
    lines: list[str] = []
    found: dict[Difference, list[str]] = {}
    for name in sorted({*old, *new} - set(left_out)):
        if name not in new or name not in old:
            lines.append(f"{name}: {'new' if name in new else 'gone'}")
        elif name == "_strings":
            lines += strings(old[name], new[name])
        elif name.startswith("_"):
            lines += [f"{name}{each}" for each in values(old[name], new[name])]
        else:
            for each in scenario(old[name], new[name]):
                found.setdefault(each, []).append(name)
    return lines + [f"{each}   [{some(names)}]" for each, names in found.items()]


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    unique = sorted(set(names))
    return ", ".join(unique[:3]) + (f" and {len(unique) - 3} more" if len(unique) > 3 else "")


def scenario(old: Sequence[Json], new: Sequence[Json]) -> Iterator[Difference]:
    """The requests of one scenario. Those of one address are paired in their order, whatever came between them."""
    before, after = _by_address(old), _by_address(new)
    for address in sorted({*before, *after}):
        earlier, later = before.get(address, []), after.get(address, [])
        if len(earlier) != len(later):
            yield Difference(address, f"{len(earlier)} -> {len(later)} requests")
        for one, other in zip(earlier, later, strict=False):
            yield from values(one, other, address)


def _by_address(requests: Iterable[Json]) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for request in requests:
        found.setdefault(request["request"], []).append(request)
    return found


def values(old: Any, new: Any, where: str = "") -> Iterator[Difference]:
    """Fields that were added, removed or changed, and fields whose order changed where it counts."""
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _objects(old, new, where)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _lists(old, new, where)
    elif old != new or type(old) is not type(new):
        yield Difference(where, f"{show(old)} -> {show(new)}")


def _objects(old: Json, new: Json, where: str) -> Iterator[Difference]:
    for key, value in old.items():
        if key in new:
            yield from values(value, new[key], f"{where}.{key}")
        else:
            yield Difference(f"{where}.{key}", f"gone (was {show(value)})")
    for key in new:
        if key not in old:
            yield Difference(f"{where}.{key}", f"new, {show(new[key])}")
    before, after = [key for key in old if key in new], [key for key in new if key in old]
    if before != after and where.rpartition(".")[2] in ORDERED:
        yield Difference(where, f"order {' '.join(before)} -> {' '.join(after)}")


def _lists(old: list[Any], new: list[Any], where: str) -> Iterator[Difference]:
    before, after = _named(old), _named(new)
    if before is not None and after is not None:
        for name, value in before.items():
            if name in after:
                yield from values(value, after[name], f"{where}[{name}]")
            else:
                yield Difference(f"{where}[{name}]", "gone")
        yield from (Difference(f"{where}[{name}]", "new") for name in after if name not in before)
        return
    if len(old) != len(new):
        yield Difference(where, f"{len(old)} -> {len(new)} entries")
    for index, (one, other) in enumerate(zip(old, new, strict=False)):
        yield from values(one, other, f"{where}[{index}]")


def _named(entries: list[Any]) -> dict[str, Any] | None:
    """Entries by their names, when each has one of its own."""
    found = {_name(entry): entry for entry in entries}
    return None if None in found or len(found) < len(entries) else {str(name): found[name] for name in found}


def _name(entry: Any) -> str | None:
    if isinstance(entry, dict):
        return next((entry[key] for key in ("slug", "name", "effort", "type") if isinstance(entry.get(key), str)), None)
    return entry if isinstance(entry, str) else None


def show(value: Any) -> str:
    """A value as JSON, as far as a line has room for it."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def strings(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """Strings of the binary. Rust lays texts end to end, so two that differ in a tail alone count as the same."""
    yield from (f"_strings: gone {each}" for each in old if not any(_alike(each, other) for other in new))
    yield from (f"_strings: new {each}" for each in new if not any(_alike(each, other) for other in old))


def _alike(one: str, other: str) -> bool:
    """Whether one continues the other, or they part in the middle of a word: x-turn-stateno and x-turn-stateinput."""
    common = os.path.commonprefix([one, other])  # noqa: RUF071 - characters are meant, not folders
    return common in (one, other) or len(re.split(r"[-_/]", common)[-1]) >= 4


def short(line: str) -> str:
    """A line without what is the same in nearly all of them."""
    return re.sub(r"^(GET|POST) chatgpt\.com/backend-api/", r"\1 /", line)
