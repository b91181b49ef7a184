"""Whether a request continues an answer: then only its new items need to be sent. Pure functions.

The rule, found on 896 recorded requests of real clients: a client repeats its own items byte for byte, so those are
compared by a chain of digests; it brings back the last answer in its own form, so that one is compared by meaning. The
chain starts with the caller and all fields but the input, so nobody continues another caller's answer.

    request   [ client's items and older answers | the last answer | at least one item, all the client's ]
                  digest = ``Head.digest``         ``Answer.equals``    sent with ``previous_response_id``

A missed continuation costs bandwidth, a wrong one gives an answer to another question: in doubt there is none.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct

from codexd.protocol import decoding
from codexd.protocol.codex.request import FunctionCall, InputItem, Message, UpstreamRequest
from codexd.protocol.raw import RawObject, plain, type_of

_NULL = Raw(b"null")
_ID = ("id",)
_LINE = b"\n"  # not in any encoded item, so the joined items cannot be taken for others
_IGNORED = frozenset({"id", "status"})
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_KEYS = dict.fromkeys(("type", "role", "content", "call_id", "name", "arguments", "output", "namespace"))
_ordered = set[tuple[str, ...]]()
"""Keys that were found to be some of ``_KEYS``, in their order."""

_BATCH = 32
_MAX_EXACT = 2**53

_encode = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="deterministic").encode


class Chain(NamedTuple):
    """A request in the form in which it is compared and sent. ``items`` are the encoded input items.

    ``digest`` identifies fields and whole input. ``start`` is the index of the last answer's first item and ``before``
    the digest up to there; None if the input does not end with an answer and the client's items after it, which begin
    at ``tail``. ``size``: bytes of all items.
    """

    items: list[Raw]
    digest: bytes
    start: int | None
    before: bytes | None
    tail: int
    size: int


class _Call(NamedTuple):
    kind: str
    call_id: str
    name: str
    exact: bytes
    canonical: bytes


class Answer(Struct, frozen=True):
    """A complete answer, as digests. ``final`` leaves out commentary; ``hosted`` are tools that the backend ran."""

    text: bytes
    final: bytes
    calls: tuple[_Call, ...]
    reasoning: tuple[bytes, ...]
    hosted: tuple[bytes, ...]


def chain_of(request: UpstreamRequest, caller: str) -> Chain:
    """Returns the request's encoded items and digests. ``caller`` separates the conversations of different callers."""
    items = request.input
    tail = len(items)
    while tail and not _is_models(items[tail - 1]):
        tail -= 1
    start: int | None = tail
    while start and _is_models(items[start - 1]):
        start -= 1
    if not start or tail == len(items):
        start = None
    fields = msgspec.structs.replace(request, input=[], prompt_cache_key="", client_metadata=UNSET)
    digest = hashlib.sha256(_encode((caller, fields)))
    bare = [_without_id(item) if isinstance(item, dict) else item for item in items]
    encoded = [_encode(item) for item in bare]
    # Raw objects of Responses clients may come back with their keys in another order and nulls added.
    compared = [
        _normal(item) if isinstance(item, dict) and not _is_normal(item) else data
        for item, data in zip(bare, encoded, strict=True)
    ]
    before = None
    if start is not None:
        _update(digest, compared[:start])
        before = digest.digest()
    _update(digest, compared[start or 0 :])
    return Chain(list(map(Raw, encoded)), digest.digest(), start, before, tail, sum(map(len, encoded)))


def answer_of(items: Sequence[RawObject]) -> Answer:
    """Returns the digests of an answer's output items, as the backend sent them."""
    texts, finals = list[str](), list[str]()
    calls, reasoning, hosted = list[_Call](), list[bytes](), list[bytes]()
    for item in items:
        kind = type_of(item)
        if kind == "message":
            text = _text(item)
            texts.append(text)
            if plain(item.get("phase")) != "commentary":
                finals.append(text)
        elif kind == "reasoning":
            if given := plain(item.get("encrypted_content")):
                reasoning.append(_digest(given.encode()))
        elif kind in _CALLS:
            calls.append(_call(kind, item))
        else:
            hosted.append(_digest(_normal(item, _IGNORED)))
    return Answer(_joined(texts), _joined(finals), tuple(calls), tuple(reasoning), tuple(hosted))


def equals(answer: Answer, items: Sequence[InputItem], *, lossless: bool) -> bool:
    """Returns whether these items are that answer, as a client brings it back.

    ``lossless``: the client's API carries commentary and hosted calls too; otherwise they may be missing.
    """
    found = answer_of([item if isinstance(item, dict) else _raw(item) for item in items])
    if found.text != answer.text and (lossless or found.text != answer.final):
        return False
    if not (found.hosted == answer.hosted or (not lossless and not found.hosted)):
        return False
    remaining = iter(answer.reasoning)
    if not all(each in remaining for each in found.reasoning):
        return False
    return len(found.calls) == len(answer.calls) and all(map(_same_call, found.calls, answer.calls))


def _same_call(one: _Call, other: _Call) -> bool:
    return one[:3] == other[:3] and (one.exact == other.exact or one.canonical == other.canonical)


def _update(digest: "hashlib._Hash", items: Sequence[bytes]) -> None:
    """Adds items to a digest, several at once: one call for each takes as long as the hashing of a short one."""
    for at in range(0, len(items), _BATCH):
        digest.update(_LINE.join(items[at : at + _BATCH]) + _LINE)


# --- items


def _is_models(item: InputItem) -> bool:
    """Returns whether the model made an item; compactions and tool lists are the client's to keep."""
    if isinstance(item, FunctionCall):
        return True
    if isinstance(item, Message):
        return item.role == "assistant"
    if not isinstance(item, dict):
        return False
    kind = type_of(item)
    if kind in (None, "message"):
        return plain(item.get("role")) == "assistant"
    return kind == "reasoning" or kind.endswith("_call")


def _without_id(item: RawObject) -> RawObject:
    return item if "id" not in item else {key: value for key, value in item.items() if key != "id"}


def _raw(item: InputItem) -> RawObject:
    return decoding.decode(_encode(item), type=RawObject)


def _normal(item: RawObject, ignored: Sequence[str] | frozenset[str] = _ID) -> bytes:
    """Returns an item with its keys in the order of the structs, without nulls, so that both forms are equal."""
    keys = [key for key in _KEYS if key in item] + sorted(item.keys() - _KEYS.keys())
    return _encode({key: item[key] for key in keys if key not in ignored and item[key] != _NULL})


def _is_normal(item: RawObject) -> bool:
    """Returns whether ``_normal`` would only encode the item as it is, as it would most items."""
    keys = tuple(item)
    if keys not in _ordered:
        known = iter(_KEYS)
        if not all(key in known for key in keys):
            return False
        _ordered.add(keys)
    return _NULL not in item.values()


def _text(item: RawObject) -> str:
    """Returns the joined text of a message's parts; a refusal counts as text."""
    content = item.get("content", _NULL)
    try:
        if isinstance(found := decoding.decode(content), str):
            return found
        return "".join(part.get("text") or part.get("refusal") or "" for part in found or ())
    except (AttributeError, TypeError):
        return bytes(content).decode()


def _joined(texts: list[str]) -> bytes:
    return _digest("".join(texts).strip().encode(errors="surrogatepass"))


def _call(kind: str, item: RawObject) -> _Call:
    exact = plain(item.get(_CALLS[kind])) or ""
    canonical = _canonical(exact) if kind == "function_call" else exact.encode()
    name, call_id = plain(item.get("name")) or "", plain(item.get("call_id")) or ""
    return _Call(kind, call_id, name, _digest(exact.encode()), _digest(canonical))


def _canonical(arguments: str) -> bytes:
    """Returns arguments with sorted keys and no white space. They are not compared as Python objects, for True == 1."""
    try:
        return _sorted(_whole(decoding.decode(arguments or "{}")))
    except (msgspec.DecodeError, RecursionError):
        return arguments.encode()


def _whole(value: object) -> object:
    """Returns the value with floats that are whole numbers as integers, as some clients write them."""
    match value:
        case dict():
            return {key: _whole(each) for key, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case float() if value.is_integer() and abs(value) < _MAX_EXACT:
            return int(value)
        case _:
            return value


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
