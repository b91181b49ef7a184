"""anthropic-python: the tool runner, streaming, and a thread, which falls back to the whole conversation."""

import json
import sys

import anthropic
from anthropic import beta_tool

root, model = sys.argv[1:]
client = anthropic.Anthropic(base_url=root, api_key="x")


@beta_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


runner = client.beta.messages.tool_runner(
    model=model, max_tokens=1000, tools=[get_weather], messages=[{"role": "user", "content": "Weather in Paris?"}]
)
messages = list(runner)
with client.messages.stream(model=model, max_tokens=1000, messages=[{"role": "user", "content": "Hello"}]) as stream:
    streamed = stream.get_final_text()
listed = [each.id for each in client.models.list()]
print(json.dumps({
    "turns": [message.stop_reason for message in messages], "last": messages[-1].content[-1].text, "streamed": streamed,
    "listed": listed,
}))  # fmt: skip
