// The official JavaScript client of Ollama: models, chat with a tool, prompts. Prints one JSON object.
import { Ollama } from "ollama";

const [host, model] = process.argv.slice(2);
const client = new Ollama({ host });
const hello = [{ role: "user", content: "Hello" }];
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather", parameters: {
  type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }];

const messages = [{ role: "user", content: "Weather in Paris?" }];
let calls = [];
for await (const part of await client.chat({ model, messages, tools, stream: true })) {
  calls = calls.concat(part.message.tool_calls ?? []);
}
messages.push({ role: "assistant", content: "", tool_calls: calls });
for (const call of calls) {
  messages.push({ role: "tool", tool_name: call.function.name, content: `sunny in ${call.function.arguments.city}` });
}
let streamed = "";
for await (const part of await client.generate({ model, prompt: "Hello", stream: true })) streamed += part.response;
console.log(JSON.stringify({
  listed: (await client.list()).models.map((each) => each.name),
  capabilities: (await client.show({ model })).capabilities,
  whole: (await client.chat({ model, messages: hello })).message.content,
  streamed,
  looped: (await client.chat({ model, messages, tools })).message.content,
}));
