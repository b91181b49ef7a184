"""Bodies that scan as JSON and still cannot be decoded."""

import sys
from typing import Any

import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol import parameters
from codexd.protocol.members import RequestDecoder, split


class Anything(msgspec.Struct):
    value: Any


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="C code has a limit of its own there")
def test_a_nesting_that_only_the_scan_endured_is_a_400() -> None:
    """Scanning and decoding have the same limit, but not the same stack above them."""
    found = split(b'{"value":' + b"[" * 700 + b"]" * 700 + b"}")
    decoder = RequestDecoder(Anything)
    assert decoder.decode(found).value

    def deeper(frames: int) -> None:
        if frames:
            deeper(frames - 1)
        else:
            decoder.decode(found)

    with pytest.raises(ApiError, match="nested too deeply") as caught:
        deeper(400)
    assert caught.value.status == 400


def test_a_parameter_that_cannot_be_decoded_is_dropped_as_any_other() -> None:
    (adjusted,) = parameters.apply_rules(split(b'{"surprise":1e999}'), parameters.CHAT)
    assert str(adjusted) == "surprise=dropped"


def test_a_repair_that_cannot_be_done_leaves_the_first_error() -> None:
    class Asked(msgspec.Struct):
        number: int
        adjusted: Any = ()

    def repair(_: Any) -> Any:
        raise RecursionError

    with pytest.raises(ApiError) as caught:
        RequestDecoder(Asked, repair).decode(split(b'{"number": "x"}'))
    assert caught.value.error.param == "number"
