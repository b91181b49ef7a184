"""Bodies of ``multipart/form-data``, decoded by Werkzeug, which Quart brings."""

from typing import NamedTuple

from codexd import errors

MAX_PARTS = 100


class Form(NamedTuple):
    """``fields`` are (name, text) and ``files`` (name, file name, data), in order."""

    fields: list[tuple[str, str]]
    files: list[tuple[str, str, bytes]]


def is_form(content_type: str) -> bool:
    return content_type.lower().startswith("multipart/form-data")


def decode(content_type: str, body: bytes) -> Form:
    """Decodes a body, which takes long enough for a thread. Raises ApiError 400 for one that is not a form."""
    # Loaded here, because few requests need it.
    from werkzeug.exceptions import RequestEntityTooLarge
    from werkzeug.http import parse_options_header
    from werkzeug.sansio import multipart

    boundary = parse_options_header(content_type)[1].get("boundary", "")
    form = Form([], [])
    decoder = multipart.MultipartDecoder(boundary.encode(errors="replace"), max_parts=MAX_PARTS)
    name, filename, data = "", None, bytearray()
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), multipart.Epilogue | multipart.NeedData):
            if isinstance(event, multipart.Field | multipart.File):
                if not event.name:
                    raise ValueError("a part has no name")
                name, data = event.name, bytearray()
                filename = event.filename if isinstance(event, multipart.File) else None
            elif isinstance(event, multipart.Data):
                data += event.data
                if not event.more_data and filename is not None:
                    form.files.append((name, filename, bytes(data)))
                elif not event.more_data:
                    form.fields.append((name, data.decode(errors="replace")))
    except (ValueError, KeyError, RequestEntityTooLarge) as error:
        raise errors.bad_request("The form cannot be read. Send multipart/form-data with named fields.") from error
    if not form.fields and not form.files:
        raise errors.bad_request("The form has no fields. Send multipart/form-data with its boundary in content-type.")
    return form
