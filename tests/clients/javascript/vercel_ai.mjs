// Vercel's AI SDK: OpenAI's provider with responses (its default) and chat completions, and the
// provider for servers that are like OpenAI's.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { Report, address, again, model, weather } from "./reporting.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const report = new Report();
const openai = createOpenAI({ baseURL: address, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "gptoss",
  baseURL: address,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const models = {
  responses: openai(model),
  chat: openai.chat(model),
  compatible: compatible(model),
};
const schema = z.object({ city: z.enum(["Oslo", "Rome"]), days: z.int() });
const tools = Object.fromEntries(
  ["get_time", "get_weather"].map((name) => [
    name,
    tool({
      description: name,
      inputSchema: z.object({ city: z.string() }),
      execute: () => weather,
    }),
  ]),
);
const stopWhen = stepCountIs(4);
const told = ({ text, steps }) => ({
  text,
  called: steps.flatMap((step) => step.toolCalls.map((call) => call.toolName)),
});

for (const api of Object.keys(models)) {
  const base = { model: models[api], maxRetries: 0 };
  await report.check(api, "plain", async (prompt) => {
    const { text, reasoningText } = await generateText({ ...base, prompt });
    return { text, thinking: reasoningText };
  });

  const streamed = async (prompt, providerOptions) => {
    const whole = { text: "", thinking: "" };
    const result = streamText({ ...base, prompt, providerOptions, onError: () => {} });
    for await (const part of result.fullStream) {
      if (part.type === "error") {
        throw part.error;
      } else if (part.type === "text-delta") {
        whole.text += part.text;
      } else if (part.type === "reasoning-delta") {
        whole.thinking += part.text;
      }
    }
    return { ...whole, tokens: (await result.totalUsage).totalTokens };
  };
  await report.check(api, "streamed", (prompt) => streamed(prompt));

  const loop = async (prompt, providerOptions) =>
    told(await generateText({ ...base, prompt, tools, stopWhen, providerOptions }));
  for (const check of ["tools", "preamble", "undeclared"]) {
    await report.check(api, check, (prompt) => loop(prompt));
  }
  await report.check(api, "history", async (content) => {
    const asked = [{ role: "user", content }];
    const first = await generateText({ ...base, messages: asked, tools, stopWhen });
    const messages = [...asked, ...first.response.messages, { role: "user", content: again }];
    const second = await generateText({ ...base, messages, tools, stopWhen });
    return told({ text: second.text, steps: [...first.steps, ...second.steps] });
  });

  if (api === "responses") {
    // It does not know by the name that the model thinks.
    const thinks = { forceReasoning: true };
    await report.check(api, "encrypted", (prompt) =>
      loop(prompt, { openai: { ...thinks, store: false } }),
    );
    await report.check(api, "summary", (prompt) =>
      streamed(prompt, { openai: { ...thinks, reasoningSummary: "auto" } }),
    );
  }

  await report.check(api, "tools_streamed", async (prompt) => {
    let failed;
    const onError = ({ error }) => {
      failed = error;
    };
    const result = streamText({ ...base, prompt, tools, stopWhen, onError });
    await result.consumeStream({ onError: () => {} });
    if (failed) {
      throw failed;
    }
    return told({ text: await result.text, steps: await result.steps });
  });

  await report.check(api, "structured", async (prompt) => {
    const { output } = await generateText({ ...base, prompt, output: Output.object({ schema }) });
    return { value: output };
  });

  await report.check(api, "too_long", (prompt) => generateText({ ...base, prompt }));
}

report.print();
