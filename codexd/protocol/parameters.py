"""The treatment of each request parameter: one table per dialect. The tables of the reference are generated from these.

The backend refuses unknown parameters before it generates a token. So a parameter is forwarded, adjusted, dropped by a
rule that the header ``x-codexd-adjusted`` reports, or refused by name.
"""

import re
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.adjustments import Adjustment, Adjustments
from codexd.protocol.raw import RawObject
from codexd.reasons import quoted


class Rule(NamedTuple):
    """Treatment of one parameter. ``harmless`` JSON values ask for the default; they are not reported or refused."""

    treatment: Literal["forwarded", "adjusted", "emulated", "dropped", "refused"]
    note: str = ""
    harmless: tuple[Any, ...] = ()


_BACKEND = "the backend does not support it"
_MAX_TOKENS = (
    "codexd estimates the tokens of text and tool arguments, never above the real count, and closes the "
    "backend's stream at the limit; reasoning is not counted, and the usage of an answer that was cut off is estimated"
)
_SEARCHES = "the model searches, or codexd does if the model cannot"
_MAX_CALLS = "limits the searches and images that codexd runs for a responses-lite model; other models ignore it"
_EFFORT = "an effort that the model does not support becomes the nearest supported one, and an unknown word the default"
_SHARED: dict[str, Rule] = {
    "model": Rule("adjusted", "resolved to a model and, for a `NAME-EFFORT` name, its reasoning effort"),
    "stream": Rule("adjusted", "the backend always streams; codexd collects the answer for clients that do not"),
    "tools": Rule(
        "forwarded",
        "in the shape that the model requires; names over 64 characters or with unsupported characters are replaced. "
        "`web_search` and `image_generation` run in codexd for models that cannot run them; other tools of OpenAI's "
        "own are refused for these models",
    ),
    "tool_choice": Rule(
        "adjusted", "for responses-lite models a forced choice becomes an instruction, and `none` removes the tools"
    ),
    "parallel_tool_calls": Rule("forwarded", "`false` for responses-lite models"),
    "service_tier": Rule(
        "adjusted", "`fast` and `priority` become `priority`; others are dropped", ("auto", "default")
    ),
    "prompt_cache_key": Rule(
        "adjusted",
        "a UUID is forwarded; one is derived from any other key, or from the instructions and the first user turn",
    ),
    "temperature": Rule("dropped", _BACKEND),
    "top_p": Rule("dropped", _BACKEND),
    "user": Rule("dropped", _BACKEND),
    "metadata": Rule("dropped", _BACKEND, ({},)),
    "safety_identifier": Rule("dropped", _BACKEND),
    "prompt_cache_retention": Rule("dropped", _BACKEND),
    "prompt_cache_options": Rule("dropped", _BACKEND),
    "moderation": Rule("dropped", _BACKEND),
    "store": Rule("dropped", "neither codexd nor the backend stores chat answers", (False,)),
}

CHAT: dict[str, Rule] = _SHARED | {
    "messages": Rule("adjusted", "converted to input items; `system` becomes `developer`"),
    "stream_options": Rule("adjusted", "codexd handles `include_usage`"),
    "response_format": Rule(
        "forwarded", "becomes `text.format`; for `json_object`, codexd adds the word JSON to the input if it is missing"
    ),
    "reasoning_effort": Rule("adjusted", _EFFORT),
    "reasoning": Rule(
        "adjusted", "OpenRouter's parameter: `effort`, `max_tokens` (becomes an effort by size) and `enabled`"
    ),
    "enable_thinking": Rule("adjusted", "`false`: the model's lowest effort; `true`: any effort except `none`"),
    "verbosity": Rule("forwarded"),
    "max_tokens": Rule("emulated", _MAX_TOKENS),
    "max_completion_tokens": Rule("emulated", f"{_MAX_TOKENS}; takes precedence over `max_tokens`"),
    "stop": Rule(
        "emulated", "the answer ends before the first of up to 4 sequences, and the backend's stream is closed", ([],)
    ),
    "presence_penalty": Rule("dropped", _BACKEND, (0,)),
    "frequency_penalty": Rule("dropped", _BACKEND, (0,)),
    "logit_bias": Rule("dropped", _BACKEND, ({},)),
    "seed": Rule("dropped", _BACKEND),
    "prediction": Rule("dropped", _BACKEND),
    "web_search_options": Rule("adjusted", f"becomes a tool of type `web_search`; {_SEARCHES}"),
    "plugins": Rule(
        "adjusted", "OpenRouter's parameter: `web` becomes a tool of type `web_search`; others are ignored"
    ),
    "max_tool_calls": Rule("emulated", _MAX_CALLS),
    "n": Rule("emulated", "up to 8, as parallel requests to the backend", (1,)),
    "logprobs": Rule("refused", _BACKEND, (False,)),
    "top_logprobs": Rule("refused", _BACKEND, (0,)),
    "audio": Rule("refused", "the backend does not support audio"),
    "modalities": Rule("refused", "the backend answers only in text", (["text"],)),
    "previous_response_id": Rule("refused", "send the whole conversation, or use the Responses API"),
    "conversation": Rule("refused", "send the whole conversation; codexd has no conversations API"),
    "functions": Rule("adjusted", "become `tools`; the answer has `function_call`. Ignored if `tools` is present"),
    "function_call": Rule("adjusted", "becomes `tool_choice`"),
}

COMPLETIONS: dict[str, Rule] = {
    "model": _SHARED["model"],
    "prompt": Rule("adjusted", "each text becomes one user message; tokens are refused"),
    "stream": _SHARED["stream"],
    "stream_options": CHAT["stream_options"],
    "max_tokens": Rule("emulated", f"{_MAX_TOKENS}. Without it there is no limit"),
    "stop": CHAT["stop"],
    "n": Rule("emulated", "number of prompts times `n`, up to 8, as parallel requests to the backend", (1,)),
    "echo": Rule("emulated", "", (False,)),
    "best_of": Rule("dropped", "every answer is returned", (1,)),
    "suffix": Rule("dropped", _BACKEND, ("",)),
    "logprobs": Rule("refused", _BACKEND),
    **{
        name: CHAT[name]
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "user")
    },
}

RESPONSES: dict[str, Rule] = _SHARED | {
    "input": Rule("adjusted", "a string becomes a list; `system` becomes `developer`; ids and references are removed"),
    "instructions": Rule("adjusted", "placed after the model family's prompt when `codex.mode` is on"),
    "reasoning": Rule("adjusted", f"the summary is forwarded; {_EFFORT}"),
    "text": Rule("forwarded"),
    "include": Rule("adjusted", "always `reasoning.encrypted_content`"),
    "client_metadata": Rule("forwarded", "sent by the official client"),
    "max_output_tokens": Rule("emulated", _MAX_TOKENS),
    "max_tool_calls": Rule("emulated", _MAX_CALLS),
    "truncation": Rule("dropped", _BACKEND, ("disabled",)),
    "context_management": Rule("dropped", _BACKEND),
    "top_logprobs": Rule("dropped", _BACKEND, (0,)),
    "stream_options": Rule("dropped", "events are passed on unchanged"),
    "background": Rule("refused", "codexd does not run requests without a connected client", (False,)),
    "previous_response_id": Rule("emulated", "codexd stores answers, the backend does not"),
    "store": Rule("emulated", "stored in codexd, within limits of size and age, unless it is `false`", (False, True)),
    "conversation": Rule("refused", "use `previous_response_id`, or send the whole input"),
    "prompt": Rule("refused", "the backend has no prompt templates for ChatGPT accounts"),
}

MESSAGES: dict[str, Rule] = {
    "model": _SHARED["model"],
    "messages": Rule("adjusted", "converted to input items; `cache_control` has no effect"),
    "system": Rule("adjusted", "becomes the instructions"),
    "max_tokens": Rule("emulated", _MAX_TOKENS),
    "stop_sequences": Rule(
        "emulated", "the answer ends before the first of up to 64 sequences, and the backend's stream is closed", ([],)
    ),
    "stream": _SHARED["stream"],
    "tools": Rule(
        "adjusted",
        f"tools with an `input_schema`, and Anthropic's web search: {_SEARCHES}. Others (bash, computer) are refused",
    ),
    "tool_choice": _SHARED["tool_choice"],
    "thinking": Rule(
        "adjusted",
        "reasoning summaries come as thinking blocks unless it is `disabled` or absent; `budget_tokens` becomes an "
        "effort by size (2048 `low`, 8192 `medium`, 24576 `high`, more `xhigh`), `disabled` the lowest",
    ),
    "output_config": Rule("adjusted", f"`format` becomes `text.format`; {_EFFORT}"),
    "output_format": Rule("adjusted", "becomes `text.format`"),
    "speed": Rule("adjusted", "`fast` becomes the service tier `priority`"),
    "temperature": _SHARED["temperature"],
    "top_p": _SHARED["top_p"],
    "top_k": Rule("dropped", _BACKEND),
    "metadata": _SHARED["metadata"],
    "service_tier": Rule("dropped", _BACKEND, ("auto", "standard_only")),
    "cache_control": Rule("dropped", "the backend caches automatically"),
    "context_management": Rule("dropped", _BACKEND),
    "inference_geo": Rule("dropped", _BACKEND),
    "thread": Rule("refused", "send the whole conversation; after this error the SDK does so by itself"),
    "container": Rule("refused", "the backend has no containers"),
    "mcp_servers": Rule("refused", "the backend cannot reach MCP servers", ([],)),
}

_ONE_FORMAT = "the backend returns only PNG"
IMAGES: dict[str, Rule] = {
    "prompt": Rule("forwarded"),
    "model": Rule("adjusted", "any name; the backend has one model, `gpt-image-2`"),
    "n": Rule("emulated", "up to 10, as parallel requests to the backend", (1,)),
    "size": Rule(
        "adjusted",
        "`auto`, `1024x1024`, `1536x1024`, `1024x1536`; other sizes become the one with the same orientation",
    ),
    "quality": Rule("adjusted", "`hd` becomes `high`, `standard` becomes `medium`"),
    "background": Rule("adjusted", "`opaque` if absent, as the official client sends it"),
    "response_format": Rule("adjusted", "`b64_json` or `url`; a `url` is served by codexd for `storage.image_seconds`"),
    "output_format": Rule("adjusted", _ONE_FORMAT),
    "stream": Rule("adjusted", "each image comes as one event when it is complete"),
    "image": Rule("adjusted", "edits: a file, base64, a data URL or a list of these"),
    "images": Rule("adjusted", "edits in JSON: a list with `image_url`"),
    "partial_images": Rule("dropped", "the backend sends none", (0,)),
    "output_compression": Rule("dropped", _ONE_FORMAT, (100,)),
    "moderation": Rule("dropped", _BACKEND, ("auto",)),
    "input_fidelity": Rule("dropped", _BACKEND),
    "style": Rule("dropped", _BACKEND),
    "user": Rule("dropped", _BACKEND),
    "mask": Rule("refused", "describe the change in the prompt instead"),
}

TRANSCRIPTIONS: dict[str, Rule] = {
    "file": Rule("forwarded"),
    "model": Rule("adjusted", "any name; the backend has one model"),
    "language": Rule("forwarded"),
    "response_format": Rule(
        "adjusted", "`json` or `text`; the others need timestamps, which the backend does not return"
    ),
    "stream": Rule("adjusted", "the transcript comes as one event"),
    "prompt": Rule("dropped", "the backend does not accept one"),
    "temperature": Rule("dropped", "the backend does not accept one", (0,)),
    "include": Rule("dropped", "the backend has no such option"),
    "chunking_strategy": Rule("dropped", "the backend has no such option", ("auto",)),
    "timestamp_granularities": Rule("dropped", "the backend returns no timestamps"),
}

OLLAMA: dict[str, Rule] = {
    "model": _SHARED["model"],
    "messages": Rule("adjusted", "converted to input items; calls and results are matched by id, name or order"),
    "stream": Rule("adjusted", "one JSON object per line, unless it is `false`"),
    "tools": _SHARED["tools"],
    "format": Rule("adjusted", '`"json"` or a JSON schema, as `text.format`'),
    "options": Rule(
        "adjusted", "`num_predict` and `stop` are emulated, sampling is dropped, the others have no effect"
    ),
    "think": Rule("adjusted", f"`true` shows the reasoning summary; a word is an effort: {_EFFORT}"),
    "keep_alive": Rule("dropped", "codexd loads no models", (0, -1, "5m", "-1", "-1m")),
}

OLLAMA_GENERATE: dict[str, Rule] = {
    **{name: OLLAMA[name] for name in ("model", "stream", "format", "options", "think", "keep_alive")},
    "prompt": Rule("adjusted", "becomes one user message"),
    "system": Rule("adjusted", "becomes the instructions"),
    "images": Rule("adjusted", "become parts of the message"),
    "suffix": Rule("dropped", _BACKEND, ("",)),
    "template": Rule("dropped", "the backend has its own", ("",)),
    "raw": Rule("dropped", "the backend has its own template", (False,)),
    "context": Rule("dropped", "send the conversation to `/api/chat`", ([],)),
}

_SANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def sane(name: str) -> str:
    """Returns a parameter's name as a header can hold it."""
    return name if _SANE_NAME.fullmatch(name) else "unknown"


def apply_rules(members: RawObject, rules: dict[str, Rule]) -> Adjustments:
    """Returns the adjustments to report to the client. A null parameter counts as absent.

    Raises ApiError 400 for the first parameter that is refused.
    """
    adjusted: dict[Adjustment, None] = {}
    for name, raw in members.items():
        rule = rules.get(name)
        if rule is not None and rule.treatment in ("forwarded", "adjusted"):
            continue
        value = _value(raw)
        if value is None or (rule is not None and value in rule.harmless):
            continue
        if rule is None:
            adjusted[Adjustment(sane(name), "dropped")] = None
        elif rule.treatment == "refused":
            how = " with this value" if rule.harmless else ""
            why = "" if rule.note == _BACKEND else f": {rule.note}"
            raise _refused(name, raw, f"{quoted(name)} is not supported{how}{why}.")
        else:
            adjusted[Adjustment(name, rule.treatment)] = None
    return tuple(adjusted)


def _refused(name: str, raw: Raw, message: str) -> errors.ApiError:
    error = errors.unsupported(name, message)
    if name == "thread":
        # The SDK sends the whole conversation after these codes; after any other one it gives up.
        continued = b'"continue"' in bytes(raw)
        error.status = 404 if continued else 400
        code = "thread_not_found" if continued else "thread_unsupported_request"
        error.error = msgspec.structs.replace(error.error, code=code)
    return error


def _value(raw: Raw) -> object:
    """Returns a decoded value; ``...`` for one over 64 bytes or invalid, which cannot be a harmless value."""
    if len(memoryview(raw)) > 64:
        return ...
    try:
        return decoding.decode(raw)
    except msgspec.DecodeError:
        return ...


def table(rules: dict[str, Rule]) -> str:
    """Returns the rules as a Markdown table."""
    rows = [f"| `{name}` | {rule.treatment} | {rule.note} |" for name, rule in sorted(rules.items())]
    return "\n".join(["| parameter | what happens | |", "|---|---|---|", *rows])
