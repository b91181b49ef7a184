// The AI SDK over its provider for OpenAI-compatible servers: text, stream, tools in a loop, an object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const [baseURL, model] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "codexd", baseURL, supportsStructuredOutputs: true, includeUsage: true });
const whole = await generateText({ model: provider(model), prompt: "Hello" });
const stream = streamText({ model: provider(model), prompt: "Hello" });
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
const schema = jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"],
  additionalProperties: false });
const looped = await generateText({ model: provider(model), prompt: "Weather in Paris?", stopWhen: stepCountIs(3),
  tools: { get_weather: tool({ inputSchema: schema, execute: async ({ city }) => `sunny in ${city}` }) } });
const object = await generateText({ model: provider(model), prompt: "Which city?", output: Output.object({ schema }) });
console.log(JSON.stringify({
  whole: whole.text, streamed, steps: looped.steps.length, looped: looped.text, object: object.output,
  finish: await stream.finishReason, tokens: (await stream.usage).outputTokens > 0,
}));
