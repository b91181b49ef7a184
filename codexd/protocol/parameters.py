"""What becomes of each request parameter: one table a dialect, from which the README's is made.

The backend refuses what it does not know (an allow-list, before any token), so a parameter is forwarded, adjusted,
dropped by a rule that the answer's ``x-codexd-adjusted`` header reports, or refused by name.
"""

import re
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.protocol.adjustments import Adjustment, Adjustments
from codexd.protocol.raw import RawObject


class Rule(NamedTuple):
    """``harmless`` are JSON values that ask for what happens anyway: neither reported nor refused."""

    treatment: Literal["forwarded", "adjusted", "emulated", "dropped", "refused"]
    note: str = ""
    harmless: tuple[Any, ...] = ()


_BACKEND = "the backend refuses it"
_MAX_TOKENS = (
    "the answer is cut at an estimate of 4 bytes of text and tool arguments a token, and the backend's stream closed; "
    "reasoning is not counted, and the usage of a cut answer is estimated"
)
_SHARED: dict[str, Rule] = {
    "model": Rule("adjusted", "resolved to a model and, from a `NAME-EFFORT` name, its reasoning effort"),
    "stream": Rule("adjusted", "the backend is always streamed; codexd collects the answer when the client is not"),
    "tools": Rule(
        "forwarded",
        "in the shape that the model asks for; names over 64 characters or with odd ones are shortened and restored",
    ),
    "tool_choice": Rule(
        "adjusted", "for responses-lite models a forced choice becomes an instruction, and `none` leaves the tools out"
    ),
    "parallel_tool_calls": Rule("forwarded", "`false` for responses-lite models"),
    "service_tier": Rule(
        "adjusted", "`fast` and `priority` become `priority`; others are dropped", ("auto", "default")
    ),
    "prompt_cache_key": Rule("forwarded", "derived from instructions, tools and first user turn when absent"),
    "temperature": Rule("dropped", _BACKEND),
    "top_p": Rule("dropped", _BACKEND),
    "user": Rule("dropped", _BACKEND),
    "metadata": Rule("dropped", _BACKEND, ({},)),
    "safety_identifier": Rule("dropped", _BACKEND),
    "prompt_cache_retention": Rule("dropped", _BACKEND),
    "prompt_cache_options": Rule("dropped", _BACKEND),
    "moderation": Rule("dropped", _BACKEND),
    "store": Rule("dropped", "chat answers are not stored, here or at the backend", (False,)),
}

CHAT: dict[str, Rule] = _SHARED | {
    "messages": Rule("adjusted", "converted to input items; `system` becomes `developer`"),
    "stream_options": Rule("adjusted", "`include_usage` is honoured here"),
    "response_format": Rule("forwarded", "as `text.format`; for `json_object` the input is made to speak of JSON"),
    "reasoning_effort": Rule("forwarded", "must be one that the model offers"),
    "verbosity": Rule("forwarded"),
    "max_tokens": Rule("emulated", _MAX_TOKENS),
    "max_completion_tokens": Rule("emulated", f"{_MAX_TOKENS}; goes before `max_tokens`"),
    "stop": Rule(
        "emulated", "the answer ends before the first of up to 4 sequences, and the backend's stream is closed", ([],)
    ),
    "presence_penalty": Rule("dropped", _BACKEND, (0,)),
    "frequency_penalty": Rule("dropped", _BACKEND, (0,)),
    "logit_bias": Rule("dropped", _BACKEND, ({},)),
    "seed": Rule("dropped", _BACKEND),
    "prediction": Rule("dropped", _BACKEND),
    "web_search_options": Rule("dropped", _BACKEND),
    "n": Rule("emulated", "up to 8, as so many requests to the backend at once", (1,)),
    "logprobs": Rule("refused", _BACKEND, (False,)),
    "top_logprobs": Rule("refused", _BACKEND, (0,)),
    "audio": Rule("refused", "the backend has no audio"),
    "modalities": Rule("refused", "the backend answers in text", (["text"],)),
    "functions": Rule("adjusted", "become `tools`; the answer has `function_call`. Ignored beside `tools`"),
    "function_call": Rule("adjusted", "becomes `tool_choice`"),
}

COMPLETIONS: dict[str, Rule] = {
    "model": _SHARED["model"],
    "prompt": Rule("adjusted", "each text becomes one user message; tokens are refused"),
    "stream": _SHARED["stream"],
    "stream_options": CHAT["stream_options"],
    "max_tokens": Rule("emulated", f"{_MAX_TOKENS}. Without it there is no limit"),
    "stop": CHAT["stop"],
    "n": Rule("emulated", "n times the number of prompts up to 8, as so many requests to the backend at once", (1,)),
    "echo": Rule("emulated", "", (False,)),
    "best_of": Rule("dropped", "every answer is sent", (1,)),
    "suffix": Rule("dropped", _BACKEND, ("",)),
    "logprobs": Rule("refused", _BACKEND),
    **{
        name: CHAT[name]
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "seed", "user")
    },
}

RESPONSES: dict[str, Rule] = _SHARED | {
    "input": Rule("adjusted", "a string becomes a list; `system` becomes `developer`; ids and item references go"),
    "instructions": Rule("adjusted", "follow the model family's text when `codex.mode` is on"),
    "reasoning": Rule("forwarded", "effort and summary; the effort must be one that the model offers"),
    "text": Rule("forwarded"),
    "include": Rule("adjusted", "always `reasoning.encrypted_content`"),
    "client_metadata": Rule("forwarded", "the official client's own"),
    "max_output_tokens": Rule("emulated", _MAX_TOKENS),
    "max_tool_calls": Rule("dropped", _BACKEND),
    "truncation": Rule("dropped", _BACKEND, ("disabled",)),
    "context_management": Rule("dropped", _BACKEND),
    "top_logprobs": Rule("dropped", _BACKEND, (0,)),
    "stream_options": Rule("dropped", "events pass as they come"),
    "background": Rule("refused", "nothing runs on without a client", (False,)),
    "previous_response_id": Rule("emulated", "codexd stores answers, the backend does not"),
    "store": Rule("emulated", "kept here, within bounds of size and age, unless it is `false`", (False, True)),
    "conversation": Rule("refused", "use `previous_response_id`, or send the whole input"),
    "prompt": Rule("refused", "the backend has no prompt templates for this sign-in"),
}

MESSAGES: dict[str, Rule] = {
    "model": _SHARED["model"],
    "messages": Rule("adjusted", "converted to input items; `cache_control` means nothing to the backend"),
    "system": Rule("adjusted", "becomes the instructions"),
    "max_tokens": Rule("emulated", _MAX_TOKENS),
    "stop_sequences": Rule(
        "emulated", "up to 64; the answer ends before the first, and the backend's stream is closed", ([],)
    ),
    "stream": _SHARED["stream"],
    "tools": Rule("adjusted", "those with an `input_schema`; Anthropic's own (web search, bash, computer) are refused"),
    "tool_choice": _SHARED["tool_choice"],
    "thinking": Rule("adjusted", "reasoning summaries come as thinking blocks unless it is `disabled` or absent"),
    "output_config": Rule("adjusted", "`effort` must be one that the model offers; `format` becomes `text.format`"),
    "output_format": Rule("adjusted", "becomes `text.format`"),
    "speed": Rule("adjusted", "`fast` becomes the service tier `priority`"),
    "temperature": _SHARED["temperature"],
    "top_p": _SHARED["top_p"],
    "top_k": Rule("dropped", _BACKEND),
    "metadata": _SHARED["metadata"],
    "service_tier": Rule("dropped", _BACKEND, ("auto", "standard_only")),
    "cache_control": Rule("dropped", "the backend caches by itself"),
    "context_management": Rule("dropped", _BACKEND),
    "inference_geo": Rule("dropped", _BACKEND),
    "container": Rule("refused", "the backend has no containers"),
    "mcp_servers": Rule("refused", "the backend reaches no MCP servers", ([],)),
}

_SANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def apply_rules(members: RawObject, rules: dict[str, Rule]) -> Adjustments:
    """Returns what the client is told of its parameters. Null means absent.

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
            # Unknown names are dropped like known ones; what cannot stand in a header has no name there.
            adjusted[Adjustment(name if _SANE_NAME.fullmatch(name) else "unknown", "dropped")] = None
        elif rule.treatment == "refused":
            how = " with this value" if rule.harmless else ""
            raise errors.unsupported(name, f"{name!r} is not supported{how}: {rule.note}.")
        else:
            adjusted[Adjustment(name, rule.treatment)] = None
    return tuple(adjusted)


def _value(raw: Raw) -> object:
    """Returns a small value, decoded; ``...`` for a large one, which cannot be a harmless value."""
    if len(memoryview(raw)) > 64:
        return ...
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ...


def table(rules: dict[str, Rule]) -> str:
    """The rules as a Markdown table."""
    rows = [f"| `{name}` | {rule.treatment} | {rule.note} |" for name, rule in sorted(rules.items())]
    return "\n".join(["| parameter | what happens | |", "|---|---|---|", *rows])
