// OpenAI's JavaScript client against a server: what each call gave, as one line of JSON.
// node client.mjs ADDRESS: test_javascript.py runs it and looks at the line.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const model = "nano";
const messages = [{ role: "user", content: "What will the weather be?" }];
const options = JSON.parse(process.argv[3]); // of a model that would not end by itself
const one = { structured_outputs: { choice: ["Rain in Oslo.", "Sun in Rome."] } };
const schema = {
  type: "object",
  properties: { city: { enum: ["Oslo", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", parameters: schema, strict: true } };
const named = { type: "function", function: { name: "weather" } };
const found = {};

found.models = (await client.models.list()).data.map((each) => each.id);

const completion = { model, prompt: "Once upon a time", max_tokens: 12, temperature: 0 };
found.completion = (await client.completions.create(completion)).choices[0].text;

const chat = { model, messages, max_tokens: 200, seed: 1, ...options };
found.chat = (await client.chat.completions.create({ ...chat, ...one })).choices[0];

found.streamed = "";
found.thoughts = "";
for await (const chunk of await client.chat.completions.create({
  ...chat,
  ...one,
  stream: true,
  stream_options: { include_usage: true },
})) {
  found.streamed += chunk.choices[0]?.delta.content ?? "";
  found.thoughts += chunk.choices[0]?.delta.reasoning_content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

const format = { type: "json_schema", json_schema: { name: "it", schema, strict: true } };
const parsed = await client.chat.completions.parse({ ...chat, response_format: format });
found.parsed = parsed.choices[0].message.parsed;

const called = await client.chat.completions.create({ ...chat, tools: [tool], tool_choice: named });
found.call = called.choices[0].message.tool_calls[0].function;

// The client's own way of following a stream puts the call together itself.
const stream = client.chat.completions.stream({ ...chat, tools: [tool], tool_choice: named });
found.streamedCall = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const response = await client.responses.create({
  model,
  input: "What will the weather be?",
  max_output_tokens: 200,
  text: { format: { type: "json_schema", name: "it", schema, strict: true } },
  ...options,
});
found.response = response.output_text;

found.events = [];
for await (const event of await client.responses.create({
  model,
  input: "Once upon a time",
  max_output_tokens: 200,
  stream: true,
  ...one,
  ...options,
})) {
  found.events.push(event.type);
}

try {
  await client.chat.completions.create({ ...chat, model: "gpt-5" });
} catch (error) {
  found.error = { kind: error.constructor.name, status: error.status, code: error.code };
}

const leaving = await client.completions.create({ ...completion, max_tokens: 500, stream: true });
for await (const _ of leaving) {
  break; // which ends the request
}
console.log(JSON.stringify(found));
