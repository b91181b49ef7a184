"""JSON schemas in a form that the backend accepts. Pure functions.

The backend refuses the whole request for a tool's schema that JSON Schema and Anthropic's API allow: an object at the
root without ``properties``, an array without ``items`` at any depth, a root that is not an object or is a union, and
values such as ``type: null`` (OpenAI's rules, known from errors that users report). A schema that keeps the rules is
passed on byte for byte. ``strict`` has further rules: every property is required, no other one is allowed, and some
keywords are refused.
"""

import contextlib
import hashlib
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec import Raw

from codexd.protocol import decoding

Node = dict[str, Any]

WRAPPED = "value"
"""The parameter that takes a schema whose root is not an object: arguments of a call are always an object."""

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_OTHER_NAMES = {"int": "integer", "float": "number", "double": "number", "str": "string", "bool": "boolean"} | {
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
}
_MAPS = frozenset({"properties", "$defs", "definitions", "patternProperties", "dependentSchemas"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_NODES = frozenset(
    {"additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedProperties",
     "unevaluatedItems", "additionalItems"}
)  # fmt: skip
_UNIONS = ("anyOf", "oneOf", "allOf")
_NOT_AT_ROOT = (*_UNIONS, "enum", "const", "not")
_NULLABLE = frozenset({"default", "const"})
_DEFINITIONS = ("$defs", "definitions")

_NOT_STRICT = frozenset(
    {"allOf", "oneOf", "not", "if", "then", "else", "patternProperties", "propertyNames", "dependentRequired",
     "dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "contains", "minContains", "maxContains",
     "prefixItems", "minProperties", "maxProperties", "uniqueItems", "minLength", "maxLength"}
)  # fmt: skip
"""Keywords that the backend refuses with ``strict``."""

MAX_KEPT = 16 * 1024
"""Bytes of a schema up to which its result is kept."""

MAX_KNOWN = 1024


class Checked(NamedTuple):
    """``parameters`` is the schema as a tool's parameters, None if it can stay as it is; ``format`` the same for a text
    format, whose root is left alone. ``strict``: it keeps the rules of ``strict``.
    """

    parameters: Raw | None
    format: Raw | None
    strict: bool


_known: dict[bytes, Checked] = {}
"""By digest: clients send the same tools with every request, and checking takes longer than converting the rest."""


def check(schema: Raw) -> Checked:
    """Checks a schema. Raises RecursionError or decoding.TooDeep for one that is too deep."""
    data = bytes(schema)
    digest = hashlib.sha256(data).digest()
    if (found := _known.get(digest)) is None:
        try:
            found = _check(decoding.decode(data))
        except decoding.TooDeep:
            raise
        except msgspec.MsgspecError:
            found = Checked(None, None, False)  # a number that Python does not have: it is the backend's to read
        if len(data) <= MAX_KEPT:
            _keep(digest, found)
    return found


def _keep(digest: bytes, found: Checked) -> None:
    # Requests are converted in a thread too, so another one may change the table at any time.
    if len(_known) >= MAX_KNOWN:
        with contextlib.suppress(RuntimeError):
            _known.pop(next(iter(_known)), None)
    _known[digest] = found


def _check(given: object) -> Checked:
    before = msgspec.json.encode(given)
    fitted = _node(given)
    form, parameters = msgspec.json.encode(fitted), msgspec.json.encode(_root(fitted))
    return Checked(
        None if parameters == before else Raw(parameters), None if form == before else Raw(form), _is_strict(given)
    )


# --- any schema


def _node(given: object) -> Node | bool:
    """Returns a schema without what the backend refuses at any depth."""
    if isinstance(given, bool):
        return given
    if not isinstance(given, dict):
        return {}
    made: Node = {}
    for key, value in given.items():
        if (kept := _value(key, value)) is not _NOTHING:
            made[key] = kept
    if isinstance(tuple_items := given.get("items"), list) and tuple_items:
        made["prefixItems"] = [_node(each) for each in tuple_items]
    if "items" not in made and _may_be(made, "array"):
        made["items"] = {}
    if _may_be(made, "object") and made.keys().isdisjoint({*_MAPS, *_NODES, *_UNIONS, "$ref"}):
        made["properties"] = {}
    return made


_NOTHING = object()


def _value(key: str, value: object) -> object:
    if key in _MAPS:
        return {name: _node(each) for name, each in value.items()} if isinstance(value, dict) else _NOTHING
    if key in _LISTS:
        return [_node(each) for each in value] if isinstance(value, list) and value else _NOTHING
    if key in _NODES:
        return _node(value) if isinstance(value, dict | bool) else _NOTHING
    match key:
        case "items":
            return _node(value) if isinstance(value, dict | bool) else _NOTHING
        case "type":
            return _type(value)
        case "required":
            return list(dict.fromkeys(filter(_is_text, value))) if isinstance(value, list) else _NOTHING
        case "$ref":
            return value if isinstance(value, str) else _NOTHING
        case "enum":
            return value if isinstance(value, list) and value else _NOTHING
        case _:
            return _NOTHING if value is None and key not in _NULLABLE else value


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _type(value: object) -> object:
    if isinstance(value, list):
        names = list(dict.fromkeys(name for each in value if (name := _type(each)) is not _NOTHING))
        return names or _NOTHING
    if not isinstance(value, str):
        return _NOTHING
    name = value.lower()
    name = _OTHER_NAMES.get(name, name)
    return name if name in _TYPES else _NOTHING


def _may_be(node: Node, kind: str) -> bool:
    found = node.get("type")
    return found == kind or (isinstance(found, list) and kind in found)


# --- the root of a tool's parameters


def _root(given: Node | bool) -> Node:
    if isinstance(given, bool):
        return {"type": "object", "properties": {}}
    node = _dereferenced(given, given, set())
    if not _is_object(node, given, set()):
        definitions = {key: node.pop(key) for key in _DEFINITIONS if key in node}
        wrapped: Node = {"type": "object", "properties": {WRAPPED: node}, "required": [WRAPPED], **definitions}
        moved: Node = _moved(wrapped, f"#/properties/{WRAPPED}")
        return moved
    if node.get("type") == "object" and "properties" in node and node.keys().isdisjoint(_NOT_AT_ROOT):
        # In its own order, and with its own references: what is at the root stays there.
        return node if "$ref" not in given else _kept(node, given)
    choices: dict[str, list[object]] = {name: [schema] for name, schema in (node.get("properties") or {}).items()}
    required, seen = list(_required(node)), set[str]()
    for union in _UNIONS:
        variants = [_dereferenced(each, given, seen) for each in node.get(union, ()) if isinstance(each, dict)]
        for variant in variants:
            _gather(variant, given, seen, choices)
        required += _common(variants) if union != "allOf" else [name for each in variants for name in _required(each)]
    rest = {key: value for key, value in node.items() if key not in ("type", "properties", "required", *_NOT_AT_ROOT)}
    properties = {name: found[0] if len(found) == 1 else {"anyOf": found} for name, found in choices.items()}
    made: Node = {"type": "object", "properties": properties}
    if names := [name for name in dict.fromkeys(required) if name in properties]:
        made["required"] = names
    return _kept(made | rest, given)


_ROOT = "the_whole"
"""The name of the original schema among the definitions, where something refers to a part of it that has moved."""


def _kept(made: Node, given: Node) -> Node:
    """Returns a new root; if its references name parts of the old one, that is kept among the definitions."""
    moved: Node = _moved(made, f"#/$defs/{_ROOT}")
    if moved == made:
        return made
    old = {key: value for key, value in given.items() if key not in _DEFINITIONS}
    return moved | {"$defs": moved.get("$defs", {}) | {_ROOT: _moved(old, f"#/$defs/{_ROOT}")}}


def _moved(value: Any, prefix: str) -> Any:
    """Returns a schema with its local references, but for those to definitions, under another place."""
    if isinstance(value, list):
        return [_moved(each, prefix) for each in value]
    if not isinstance(value, dict):
        return value
    made = {key: _moved(each, prefix) for key, each in value.items()}
    name = value.get("$ref")
    if isinstance(name, str) and name.startswith("#") and not name.startswith(("#/$defs/", "#/definitions/", prefix)):
        made["$ref"] = prefix + name[1:]
    return made


def _dereferenced(node: Node, root: Node, seen: set[str]) -> Node:
    """Returns a schema with a local reference at its top replaced by what it names, unless that was ``seen`` before."""
    node = dict(node)
    while isinstance(name := node.pop("$ref", None), str) and name not in seen:
        seen.add(name)
        if isinstance(target := _target(name, root), dict):
            both = {
                "properties": {**(target.get("properties") or {}), **(node.get("properties") or {})},
                "required": list(dict.fromkeys([*_required(target), *_required(node)])),
            }
            node = {**target, **node, **{key: value for key, value in both.items() if value}}
    return node


def _target(name: str, root: Node) -> object:
    """Returns what a JSON pointer (RFC 6901) names; None if there is nothing, or if it is not local."""
    if not name.startswith("#/"):
        return None
    found: object = root
    for step in unquote(name[2:]).split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdecimal():
            found = found[int(step)] if int(step) < len(found) else None
        else:
            found = found.get(step) if isinstance(found, dict) else None
    return found


def _is_object(node: Node, root: Node, seen: set[str]) -> bool:
    """Returns whether a schema describes an object, or anything."""
    if "type" in node:
        return _may_be(node, "object")
    if not node.keys().isdisjoint({"enum", "const", "items", "prefixItems"}):
        return False
    return all(
        isinstance(each, bool) or _is_object(_dereferenced(each, root, seen), root, seen)
        for union in _UNIONS
        for each in node.get(union, ())
    )


def _gather(variant: Node, root: Node, seen: set[str], choices: dict[str, list[object]]) -> None:
    """Adds the properties of a variant and of the variants inside it."""
    for union in _UNIONS:
        for each in variant.get(union, ()):
            if isinstance(each, dict):
                _gather(_dereferenced(each, root, seen), root, seen, choices)
    for name, schema in (variant.get("properties") or {}).items():
        known = choices.setdefault(name, [])
        if schema not in known[-_LAST:]:
            known.append(schema)


_LAST = 32
"""Alternatives of a property that are looked at for an equal one."""


def _required(variant: Node) -> list[str]:
    return list(variant.get("required") or ())


def _common(variants: list[Node]) -> list[str]:
    if not variants:
        return []
    others = [set(_required(each)) for each in variants[1:]]
    return [name for name in _required(variants[0]) if all(name in each for each in others)]


# --- strict


def _is_strict(given: object) -> bool:
    return isinstance(given, dict) and given.get("type") == "object" and "anyOf" not in given and _strict(given)


def _strict(node: object) -> bool:
    if not isinstance(node, dict) or not node.keys().isdisjoint(_NOT_STRICT) or node.get("default") is not None:
        return False
    if node.keys().isdisjoint({"type", "anyOf", "$ref", "enum", "const"}):
        return False
    below: list[object] = []
    for key in ("properties", *_DEFINITIONS):
        found = node.get(key, {})
        if not isinstance(found, dict):
            return False
        below += found.values()
    if _may_be(node, "object") or "properties" in node:
        names, required = node.get("properties", {}).keys(), node.get("required", [])
        if node.get("additionalProperties") is not False or not isinstance(required, list):
            return False
        if len(required) != len(names) or set(filter(_is_text, required)) != set(names):
            return False
    if _may_be(node, "array") or "items" in node:
        below.append(node.get("items"))
    variants = node.get("anyOf", [])
    return isinstance(variants, list) and all(map(_strict, (*below, *variants)))
