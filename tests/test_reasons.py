"""Why something failed, as people read it."""

import http.client
import ssl
from typing import Annotated, Any, Literal

import msgspec
import pytest

from codexd.reasons import reason_of


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    number: Annotated[int, msgspec.Meta(ge=1)] = 1
    kind: Literal["a", "b"] = "a"
    tag: Annotated[str, msgspec.Meta(pattern="^x$")] = "x"
    name: str | None = None


class Document(msgspec.Struct):
    limits: list[Limits]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"7", "expected an object, got an integer"),
        (b"{}", 'missing required field "limits"'),
        (b'{"limits": {}}', "limits: expected an array, got an object"),
        (b'{"limits": [{}, {"name": 1}]}', "limits[1].name: expected a string or null, got an integer"),
        (b'{"limits": [{"number": 0}]}', "limits[0].number: expected an integer >= 1"),
        (b'{"limits": [{"kind": "c"}]}', 'limits[0].kind: unknown value "c"'),
        (b'{"limits": [{"tag": "y"}]}', "limits[0].tag: expected a string in another format"),
        (b'{"limits": [{"new": 1}]}', 'limits[0]: unknown field "new"'),
    ],
)
def test_json_of_another_shape_is_told_by_its_place_in_jsons_words(data: bytes, said: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(data, type=Document)
    assert reason_of(caught.value).replace("object contains ", "") == said


def _untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1006)")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(2, "No such file or directory", "/x"), "No such file or directory: /x"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (TimeoutError(), "no answer in time"),
        (_untrusted(), "the certificate is not trusted: self-signed certificate"),
        (ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)"), "wrong version number"),
        (http.client.BadStatusLine("x"), "x"),
        (ValueError("odd"), "odd"),
        (KeyError(), "KeyError"),
    ],
    ids=repr,
)
def test_other_reasons_have_no_numbers_and_no_names_of_the_code(error: Any, said: str) -> None:
    assert reason_of(error) == said
