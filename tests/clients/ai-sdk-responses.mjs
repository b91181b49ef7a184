// The AI SDK over its own provider for OpenAI, whose default is the Responses API with stored items: several turns, tools.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const [baseURL, model] = process.argv.slice(2);
const provider = createOpenAI({ baseURL, apiKey: "x" });
const schema = jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"],
  additionalProperties: false });
const tools = { get_weather: tool({ inputSchema: schema, execute: async ({ city }) => `sunny in ${city}` }) };

const messages = [];
const said = [];
for (const prompt of ["Hello", "Weather in Paris?", "And then?"]) {
  messages.push({ role: "user", content: prompt });
  const turn = await generateText({ model: provider(model), messages, tools, stopWhen: stepCountIs(3) });
  messages.push(...turn.response.messages);
  said.push(turn.text);
}
const stream = streamText({ model: provider(model), messages: [...messages, { role: "user", content: "Bye" }] });
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
console.log(JSON.stringify({ said, streamed }));
