"""The official Python client of Ollama: models, chat with a tool, prompts, formats. Prints one JSON object."""

import json
import sys

import ollama

host, model = sys.argv[1:]
client = ollama.Client(host=host)


def get_weather(city: str) -> str:
    """Says how the weather is in a city.

    Args:
      city: its name
    """
    return f"sunny in {city}"


hello = [{"role": "user", "content": "Hello"}]
messages = [{"role": "user", "content": "Weather in Paris?"}]
called = client.chat(model, messages=messages, tools=[get_weather])
messages.append(called.message)
for call in called.message.tool_calls or []:
    result = get_weather(**call.function.arguments)
    messages.append({"role": "tool", "tool_name": call.function.name, "content": result})
schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
try:
    client.chat("gpt-nix", messages=hello)
    failed = 0
except ollama.ResponseError as error:
    failed = error.status_code
print(
    json.dumps(
        {
            "listed": [each.model for each in client.list().models],
            "capabilities": client.show(model).capabilities,
            "running": len(client.ps().models),
            "pulled": client.pull(model).status,
            "whole": client.chat(model, messages=hello).message.content,
            "streamed": "".join(part.message.content for part in client.chat(model, messages=hello, stream=True)),
            "generated": client.generate(model, "Hello").response,
            "thought": client.chat(model, messages=hello, think=True).message.thinking,
            "object": json.loads(client.chat(model, messages=messages[:1], format=schema).message.content),
            "looped": client.chat(model, messages=messages, tools=[get_weather]).message.content,
            "failed": failed,
        }
    )
)
