// The official Node SDK: chat and responses, streamed and not, and a round of tools. Prints one JSON object.
import OpenAI, { toFile } from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "unused" });
const messages = [{ role: "user", content: "Weather in Paris?" }];
const tools = [{ type: "function", function: { name: "get_weather", parameters: {
  type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }];

const whole = await client.chat.completions.create({ model, messages: [{ role: "user", content: "Hello" }] });
let streamed = "";
for await (const chunk of await client.chat.completions.create({
  model, messages: [{ role: "user", content: "Hello" }], stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const runner = client.chat.completions.runTools({ model, messages, tools: [{ type: "function", function: {
  ...tools[0].function, parse: JSON.parse, function: ({ city }) => `sunny in ${city}` } }] });
const final = await runner.finalContent();
const response = await client.responses.create({ model, input: "Hello" });
const events = [];
const stream = client.responses.stream({ model, input: "Hello" });
for await (const event of stream) events.push(event.type);
const image = await client.images.generate({ model: "gpt-image-1", prompt: "a dot", size: "1024x1024" });
const edited = await client.images.edit({ model: "gpt-image-1", prompt: "make it blue",
  image: await toFile(Buffer.from(image.data[0].b64_json, "base64"), "dot.png", { type: "image/png" }) });
const found = await client.responses.create({ model, input: "Search the web for 'x'.", tools: [{ type: "web_search" }] });
const listed = [];
for await (const each of client.models.list()) listed.push(each.id);
console.log(JSON.stringify({
  whole: whole.choices[0].message.content, streamed, final, response: response.output_text,
  streamedResponse: (await stream.finalResponse()).output_text, first: events[0], last: events.at(-1), listed,
  images: [image, edited].map((each) => each.data[0].b64_json.length > 0),
  found: found.output.map((item) => item.type),
}));
