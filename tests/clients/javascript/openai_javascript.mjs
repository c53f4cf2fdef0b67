// OpenAI's JavaScript client: chat completions and responses, each with a loop of calls.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { Report, address, model, weather } from "./reporting.mjs";

const client = new OpenAI({ baseURL: address, apiKey: "none", maxRetries: 0 });
const report = new Report();
const trip = z.object({ city: z.enum(["Oslo", "Rome"]), days: z.int() });
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const functions = ["get_time", "get_weather"].map((name) => ({ name, parameters, strict: true }));
const { chat, responses } = client;
const user = (content) => [{ role: "user", content }];

await report.check("chat", "plain", async (text) => {
  const done = await chat.completions.create({ model, messages: user(text) });
  const { content, reasoning, reasoning_content } = done.choices[0].message;
  return { text: content, thinking: reasoning, reasoning_content };
});

await report.check("chat", "streamed", async (text) => {
  const whole = { text: "", thinking: "", reasoning_content: "" };
  const stream = await chat.completions.create({
    model,
    messages: user(text),
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const { choices, usage } of stream) {
    whole.text += choices[0]?.delta.content ?? "";
    whole.thinking += choices[0]?.delta.reasoning ?? "";
    whole.reasoning_content += choices[0]?.delta.reasoning_content ?? "";
    whole.tokens = usage?.total_tokens;
  }
  return whole;
});

const chatLoop = async (text) => {
  const messages = user(text);
  const called = [];
  const tools = functions.map((each) => ({ type: "function", function: each }));
  while (called.length < 4) {
    const done = await chat.completions.create({ model, messages, tools });
    const { message } = done.choices[0];
    if (!message.tool_calls) {
      return { text: message.content, called };
    }
    messages.push(message);
    for (const call of message.tool_calls) {
      JSON.parse(call.function.arguments);
      called.push(call.function.name);
      messages.push({ role: "tool", tool_call_id: call.id, content: weather });
    }
  }
  return { called };
};
for (const check of ["tools", "preamble", "undeclared"]) {
  await report.check("chat", check, chatLoop);
}

await report.check("chat", "tools_streamed", async (text) => {
  const called = [];
  const runner = chat.completions.runTools({
    model,
    messages: user(text),
    stream: true,
    tools: functions.map(({ name, parameters }) => ({
      type: "function",
      function: {
        name,
        description: name,
        parameters,
        parse: JSON.parse,
        function: () => {
          called.push(name);
          return weather;
        },
      },
    })),
  });
  return { text: await runner.finalContent(), called };
});

await report.check("chat", "structured", async (text) => {
  const done = await chat.completions.parse({
    model,
    messages: user(text),
    response_format: zodResponseFormat(trip, "trip"),
  });
  return { value: done.choices[0].message.parsed };
});

await report.check("chat", "too_long", (text) =>
  chat.completions.create({ model, messages: user(text) }),
);

await report.check("responses", "plain", async (input) => {
  const done = await responses.create({ model, input });
  const thinking = done.output.find((item) => item.type === "reasoning");
  return { text: done.output_text, thinking: thinking.content[0].text };
});

await report.check("responses", "streamed", async (input) => {
  const whole = { text: "", thinking: "" };
  for await (const event of await responses.create({ model, input, stream: true })) {
    if (event.type === "response.output_text.delta") {
      whole.text += event.delta;
    } else if (event.type === "response.reasoning_text.delta") {
      whole.thinking += event.delta;
    } else if (event.type === "response.completed") {
      whole.tokens = event.response.usage.total_tokens;
    }
  }
  return whole;
});

const responsesLoop = async (text) => {
  const input = user(text);
  const called = [];
  const tools = functions.map((each) => ({ type: "function", ...each }));
  while (called.length < 4) {
    const done = await responses.create({ model, input, tools });
    input.push(...done.output);
    const calls = done.output.filter((item) => item.type === "function_call");
    if (!calls.length) {
      return { text: done.output_text, called };
    }
    for (const { name, call_id, arguments: written } of calls) {
      JSON.parse(written);
      called.push(name);
      input.push({ type: "function_call_output", call_id, output: weather });
    }
  }
  return { called };
};
for (const check of ["tools", "preamble", "undeclared"]) {
  await report.check("responses", check, responsesLoop);
}

await report.check("responses", "tools_streamed", async (text) => {
  const input = user(text);
  const tools = functions.map((each) => ({ type: "function", ...each }));
  const called = [];
  while (called.length < 4) {
    const done = await responses.stream({ model, input, tools }).finalResponse();
    input.push(...done.output);
    const calls = done.output.filter((item) => item.type === "function_call");
    if (!calls.length) {
      return { text: done.output_text, called };
    }
    for (const { name, call_id } of calls) {
      called.push(name);
      input.push({ type: "function_call_output", call_id, output: weather });
    }
  }
  return { called };
});

await report.check("responses", "structured", async (input) => {
  const done = await responses.parse({
    model,
    input,
    text: { format: zodTextFormat(trip, "trip") },
  });
  return { value: done.output_parsed };
});

await report.check("responses", "too_long", (input) => responses.create({ model, input }));

report.print();
