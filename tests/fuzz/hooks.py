"""For schemathesis: a model that is there, or nearly every request would end at its name."""

import schemathesis


@schemathesis.hook
def map_body(_: object, body: object) -> object:
    if isinstance(body, dict) and "model" in body:
        body["model"] = "gpt-5.5"
    return body
