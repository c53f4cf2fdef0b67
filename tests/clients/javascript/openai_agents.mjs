// OpenAI's Agents SDK, with either API.
import {
  Agent,
  OpenAIChatCompletionsModel,
  OpenAIResponsesModel,
  Runner,
  setTracingDisabled,
  tool,
  user,
} from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { Report, address, again, model, weather } from "./reporting.mjs";

setTracingDisabled(true);
const client = new OpenAI({ baseURL: address, apiKey: "none", maxRetries: 0 });
const report = new Report();
const models = {
  chat: new OpenAIChatCompletionsModel(client, model),
  responses: new OpenAIResponsesModel(client, model),
};
const trip = z.object({ city: z.enum(["Oslo", "Rome"]), days: z.int() });
const parameters = z.object({ city: z.string() });
const tools = ["get_time", "get_weather"].map((name) =>
  tool({ name, description: name, parameters, execute: () => weather }),
);

const thinkingOf = (result) =>
  result.newItems
    .filter((item) => item.type === "reasoning_item")
    .flatMap(({ rawItem }) => rawItem.rawContent ?? rawItem.providerData.content)
    .map((part) => part.text)
    .join("");

const told = (result) => ({
  text: result.finalOutput,
  called: result.history.filter((item) => item.type === "function_call").map((item) => item.name),
});

for (const api of Object.keys(models)) {
  const runner = new Runner({ model: models[api] });
  const agent = (options) => new Agent({ name: "it", ...options });

  await report.check(api, "plain", async (text) => {
    const result = await runner.run(agent(), text);
    return { text: result.finalOutput, thinking: thinkingOf(result) };
  });

  await report.check(api, "streamed", async (text) => {
    const whole = { text: "", thinking: "" };
    const result = await runner.run(agent(), text, { stream: true });
    for await (const { type, data } of result) {
      if (type !== "raw_model_stream_event") {
        continue;
      }
      if (data.type === "output_text_delta") {
        whole.text += data.delta;
      } else if (data.type === "model") {
        const { event } = data;
        if (api === "chat") {
          whole.thinking += event.choices[0]?.delta.reasoning ?? "";
        } else if (event.type === "response.reasoning_text.delta") {
          whole.thinking += event.delta;
        }
      }
    }
    await result.completed;
    return { ...whole, tokens: result.state.usage.totalTokens };
  });

  const loop = async (text) => told(await runner.run(agent({ tools }), text));
  for (const check of ["tools", "preamble", "undeclared"]) {
    await report.check(api, check, loop);
  }

  await report.check(api, "tools_streamed", async (text) => {
    const result = await runner.run(agent({ tools }), text, { stream: true });
    await result.completed;
    return told(result);
  });

  await report.check(api, "history", async (text) => {
    const first = await runner.run(agent({ tools }), text);
    return told(await runner.run(agent({ tools }), [...first.history, user(again)]));
  });

  await report.check(api, "structured", async (text) => {
    const result = await runner.run(agent({ outputType: trip }), text);
    return { value: result.finalOutput };
  });

  await report.check(api, "too_long", (text) => runner.run(agent(), text));
}

report.print();
