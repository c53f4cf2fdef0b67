"""LiteLLM: chat completions as it gives those of OpenAI and of vLLM, and responses."""

from __future__ import annotations

import json

import litellm
from reporting import ADDRESS, KEY, MODEL, SCHEMA, WEATHER, Report

litellm.suppress_debug_info = True
report = Report()
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTIONS = [{"name": name, "parameters": PARAMETERS} for name in ("get_time", "get_weather")]
PROVIDERS = {"chat": "openai", "hosted_vllm": "hosted_vllm"}


def ask(provider, **options):
    return litellm.completion(
        f"{provider}/{MODEL}", api_base=ADDRESS, api_key=KEY, num_retries=0, max_retries=0,
        **options,
    )  # fmt: skip


def messages(text):
    return [{"role": "user", "content": text}]


for api, provider in PROVIDERS.items():

    @report(api, "plain")
    def _(text, provider=provider):
        message = ask(provider, messages=messages(text)).choices[0].message
        return {"text": message.content, "thinking": message.reasoning_content}

    @report(api, "streamed")
    def _(text, provider=provider):
        whole = {"text": "", "thinking": "", "tokens": 0}
        for chunk in ask(provider, messages=messages(text), stream=True,
                         stream_options={"include_usage": True}):  # fmt: skip
            for choice in chunk.choices:
                whole["text"] += choice.delta.content or ""
                whole["thinking"] += getattr(choice.delta, "reasoning_content", None) or ""
            whole["tokens"] = getattr(chunk, "usage", None) and chunk.usage.total_tokens
        return whole

    def loop(text, streamed=False, provider=provider):
        asked, called = messages(text), []
        tools = [{"type": "function", "function": function} for function in FUNCTIONS]
        while len(called) < 4:
            done = ask(provider, messages=asked, tools=tools, stream=streamed)
            if streamed:
                done = litellm.stream_chunk_builder(list(done), messages=asked)
            message = done.choices[0].message
            if not message.tool_calls:
                return {"text": message.content, "called": called}
            asked.append(message.model_dump())
            for call in message.tool_calls:
                json.loads(call.function.arguments)
                called.append(call.function.name)
                asked.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER})
        return {"called": called}

    for check in ("tools", "preamble", "undeclared"):
        report(api, check)(loop)

    @report(api, "tools_streamed")
    def _(text, loop=loop):
        return loop(text, streamed=True)

    @report(api, "structured")
    def _(text, provider=provider):
        form = {"name": "trip", "schema": SCHEMA, "strict": True}
        done = ask(provider, messages=messages(text),
                   response_format={"type": "json_schema", "json_schema": form})  # fmt: skip
        return {"value": json.loads(done.choices[0].message.content)}

    @report(api, "too_long")
    def _(text, provider=provider):
        ask(provider, messages=messages(text))


def respond(**options):
    return litellm.responses(model=f"openai/{MODEL}", api_base=ADDRESS, api_key=KEY, **options)


@report("responses", "plain")
def _(text):
    done = respond(input=text)
    thinking = [part.text for item in done.output if item.type == "reasoning"
                for part in item.content]  # fmt: skip
    return {"text": done.output_text, "thinking": "".join(thinking)}


@report("responses", "streamed")
def _(text):
    whole = {"text": "", "thinking": ""}
    for event in respond(input=text, stream=True):
        if event.type == "response.output_text.delta":
            whole["text"] += event.delta
        elif event.type == "response.reasoning_text.delta":
            whole["thinking"] += event.delta
        elif event.type == "response.completed":
            whole["tokens"] = event.response.usage.total_tokens
    return whole


@report("responses", "tools")
def _(text):
    items, called = messages(text), []
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    while len(called) < 4:
        done = respond(input=items, tools=tools)
        items += [item.model_dump(exclude_none=True) for item in done.output]
        calls = [item for item in done.output if item.type == "function_call"]
        if not calls:
            return {"text": done.output_text, "called": called}
        for call in calls:
            called.append(call.name)
            items.append({"type": "function_call_output", "call_id": call.call_id,
                          "output": WEATHER})  # fmt: skip
    return {"called": called}


@report("responses", "too_long")
def _(text):
    respond(input=text)


report.print()
