"""openai-agents with its own defaults (the Responses API), a tool, a session, and a session that compacts."""

import asyncio
import json
import sys

from agents import Agent, Runner, SQLiteSession, function_tool, set_default_openai_client, set_tracing_disabled
from agents.memory import OpenAIResponsesCompactionSession
from openai import AsyncOpenAI

base, model = sys.argv[1:]
client = AsyncOpenAI(base_url=base, api_key="x")
set_default_openai_client(client, use_for_tracing=False)
set_tracing_disabled(True)


@function_tool
def get_weather(city: str) -> str:
    return f"sunny in {city}"


async def main() -> dict[str, object]:
    agent = Agent(name="weather", instructions="Answer.", model=model, tools=[get_weather])
    session = SQLiteSession("one")
    said = [(await Runner.run(agent, text, session=session)).final_output for text in ("Hello", "Weather in Paris?")]
    streamed = Runner.run_streamed(agent, "Hello again", session=session)
    async for _ in streamed.stream_events():
        pass
    compacting = OpenAIResponsesCompactionSession(
        session_id="two", underlying_session=SQLiteSession("two"), client=client, model=model,
        should_trigger_compaction=lambda _: True,
    )  # fmt: skip
    await Runner.run(agent, "Hello", session=compacting)
    kept = await compacting.get_items()
    after = await Runner.run(agent, "And you?", session=compacting)
    kinds = [item.get("type", "message") for item in kept]
    return {"said": said, "streamed": streamed.final_output, "kinds": kinds, "after": after.final_output}


print(json.dumps(asyncio.run(main())))
