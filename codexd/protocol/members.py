"""Decoding of a request body: the object is split into members, and each known member is decoded by its own type.

msgspec's decoder for a whole struct skips unknown members silently. codexd must report dropped parameters, and the
Responses API repeats some members unchanged. Splitting first needs one pass over the body and one over each member
that codexd reads.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Raw, Struct

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustments
from codexd.protocol.raw import RawObject

MAX_MEMBERS = 1000
"""Parameters of a request, known or not."""

_T = TypeVar("_T", bound=Struct)
_OBJECT = decoding.Decoder(RawObject)


def split(body: bytes) -> RawObject:
    """Returns the members of a JSON object, as views of ``body``. Raises ApiError 400 for anything else."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not validate UTF-8 in what it skips
        found: RawObject = _OBJECT.decode(body)
        if len(found) > MAX_MEMBERS:
            raise errors.bad_request(f"The request has {len(found)} parameters; the maximum is {MAX_MEMBERS}.")
    except msgspec.ValidationError as error:
        raise errors.wrong_shape(error) from error
    except UnicodeDecodeError as error:
        raise errors.not_json(decoding.NotUtf8(error.start)) from error
    except msgspec.DecodeError as error:
        raise errors.not_json(error) from error
    return found


Repair = Callable[[RawObject], tuple[RawObject, Adjustments]]
"""Returns members with a body that its API's schema refuses put into the API's words, and what was changed."""


class RequestDecoder(Generic[_T]):
    """Builds a struct from a body's members. ``codexd.protocol.parameters`` handles unknown members.

    ``repair`` is called for a body that does not fit; its members replace the body's, and the struct's ``adjusted`` has
    what it changed.
    """

    def __init__(self, struct: type[_T], repair: Repair | None = None) -> None:
        self.struct = struct
        self._repair = repair
        hints = get_type_hints(struct)
        fields = msgspec.structs.fields(struct)
        self._readers: Mapping[str, tuple[str, Callable[[Raw], Any]]] = MappingProxyType(
            {
                field.encode_name: (field.name, _reader(hints[field.name]))
                for field in fields
                if field.name != "adjusted"
            }
        )
        self._required = [field.encode_name for field in fields if field.required]

    def decode(self, members: RawObject) -> _T:
        """Builds the struct. Raises ApiError 400 that names the place of a wrong or missing value."""
        try:
            return self._decode(members)
        except ApiError:
            if self._repair is None:
                raise
            try:
                repaired, adjusted = self._repair(members)
            except (msgspec.DecodeError, RecursionError):
                repaired, adjusted = members, NONE
            if not adjusted:
                raise
            asked = msgspec.structs.replace(self._decode(repaired), adjusted=adjusted)
            members.clear()
            members.update(repaired)
            return asked

    def _decode(self, members: RawObject) -> _T:
        values: dict[str, Any] = {}
        name = ""
        try:
            for name, raw in members.items():
                if (reader := self._readers.get(name)) is not None:
                    values[reader[0]] = reader[1](raw)
            return self.struct(**values)
        except msgspec.ValidationError as error:
            raise errors.wrong_shape(error, name) from error
        except msgspec.DecodeError as error:
            raise errors.not_json(error) from error
        except TypeError as error:
            missing = next(each for each in self._required if each not in members)
            raise errors.bad_request(f'Missing required field "{missing}".', param=missing) from error


def _reader(kind: Any) -> Callable[[Raw], Any]:
    if kind is Raw or Raw in get_args(kind):
        return _as_it_is
    return decoding.Decoder(kind).decode


def _as_it_is(raw: Raw) -> Raw:
    return raw
