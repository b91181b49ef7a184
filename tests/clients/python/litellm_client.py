"""litellm as a client: prints what came, as JSON. Run by test_clients, in an environment of its own."""

import json
import sys
from typing import Any

import litellm

base, model = sys.argv[1:]
openai: dict[str, Any] = {"model": f"openai/{model}", "api_base": base, "api_key": "any"}
anthropic: dict[str, Any] = {"model": f"anthropic/{model}", "api_base": base.removesuffix("/v1"), "api_key": "any"}
hello = [{"role": "user", "content": "Hello"}]
tool = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def text(stream: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


whole = litellm.completion(**openai, messages=hello)
turns: list[Any] = [{"role": "user", "content": "What is the weather in Paris"}]
called = litellm.completion(**openai, messages=turns, tools=[tool]).choices[0].message
call = called.tool_calls[0]
city = json.loads(call.function.arguments)["city"]
turns += [called, {"role": "tool", "tool_call_id": call.id, "content": f"sunny in {city}"}]
found = {
    "whole": whole.choices[0].message.content,
    "tokens": whole.usage.total_tokens,
    "streamed": text(litellm.completion(**openai, messages=hello, stream=True)),
    "looped": litellm.completion(**openai, messages=turns, tools=[tool]).choices[0].message.content,
    "response": litellm.responses(**openai, input="Hello").output_text,
    "message": litellm.completion(**anthropic, messages=hello).choices[0].message.content,
    "streamed_message": text(litellm.completion(**anthropic, messages=hello, stream=True)),
}
print(json.dumps(found))
