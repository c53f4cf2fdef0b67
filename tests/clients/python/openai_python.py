"""OpenAI's own client: chat completions and responses, each with a loop of calls."""

from __future__ import annotations

import json

import openai
from pydantic import BaseModel
from reporting import ADDRESS, KEY, MODEL, WEATHER, Report

client = openai.OpenAI(base_url=ADDRESS, api_key=KEY, max_retries=0)
report = Report()
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
NAMES = ("get_time", "get_weather")
FUNCTIONS = [{"name": name, "parameters": PARAMETERS, "strict": True} for name in NAMES]


class Trip(BaseModel):
    city: str
    days: int


def messages(text):
    return [{"role": "user", "content": text}]


@report("chat", "plain")
def _(text):
    done = client.chat.completions.create(model=MODEL, messages=messages(text))
    message = done.choices[0].message
    thinking = {"reasoning": message.reasoning, "reasoning_content": message.reasoning_content}
    return {"text": message.content, "thinking": thinking["reasoning"], **thinking}


@report("chat", "streamed")
def _(text):
    stream = client.chat.completions.create(
        model=MODEL, messages=messages(text), stream=True, stream_options={"include_usage": True}
    )
    whole = {"text": "", "thinking": "", "reasoning_content": ""}
    for chunk in stream:
        for choice in chunk.choices:
            whole["text"] += choice.delta.content or ""
            whole["thinking"] += getattr(choice.delta, "reasoning", None) or ""
            whole["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
        usage = chunk.usage
    return {**whole, "tokens": usage.total_tokens}


def chat_loop(text):
    asked, called = messages(text), []
    tools = [{"type": "function", "function": function} for function in FUNCTIONS]
    while len(called) < 4:
        done = client.chat.completions.create(model=MODEL, messages=asked, tools=tools)
        message = done.choices[0].message
        if not message.tool_calls:
            return {"text": message.content, "called": called}
        asked.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            json.loads(call.function.arguments)
            called.append(call.function.name)
            asked.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER})
    return {"called": called}


def chat_loop_streamed(text):
    asked, called = messages(text), []
    tools = [{"type": "function", "function": function} for function in FUNCTIONS]
    while len(called) < 4:
        with client.chat.completions.stream(model=MODEL, messages=asked, tools=tools) as stream:
            message = stream.get_final_completion().choices[0].message
        if not message.tool_calls:
            return {"text": message.content, "called": called}
        asked.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls:
            assert "city" in call.function.parsed_arguments
            called.append(call.function.name)
            asked.append({"role": "tool", "tool_call_id": call.id, "content": WEATHER})
    return {"called": called}


for check in ("tools", "preamble", "undeclared"):
    report("chat", check)(chat_loop)
report("chat", "tools_streamed")(chat_loop_streamed)


@report("chat", "structured")
def _(text):
    done = client.chat.completions.parse(model=MODEL, messages=messages(text), response_format=Trip)
    return {"value": done.choices[0].message.parsed.model_dump()}


@report("chat", "too_long")
def _(text):
    try:
        client.chat.completions.create(model=MODEL, messages=messages(text))
    except openai.BadRequestError as error:
        return {"error": ["BadRequestError"], "code": error.code, "param": error.param}


@report("responses", "plain")
def _(text):
    done = client.responses.create(model=MODEL, input=text)
    (thinking,) = [item for item in done.output if item.type == "reasoning"]
    return {"text": done.output_text, "thinking": thinking.content[0].text}


@report("responses", "streamed")
def _(text):
    whole = {"text": "", "thinking": ""}
    for event in client.responses.create(model=MODEL, input=text, stream=True):
        if event.type == "response.output_text.delta":
            whole["text"] += event.delta
        elif event.type == "response.reasoning_text.delta":
            whole["thinking"] += event.delta
        elif event.type == "response.completed":
            whole["tokens"] = event.response.usage.total_tokens
    return whole


def responses_loop(text, **options):
    items, called = messages(text), []
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    while len(called) < 4:
        done = client.responses.create(model=MODEL, input=items, tools=tools, **options)
        output = [item.model_dump(exclude_none=True) for item in done.output]
        if options:  # the text stays with whoever reads it; what is encrypted goes back
            output = [
                {**item, "content": None} if item["type"] == "reasoning" else item
                for item in output
            ]
        items += output
        calls = [item for item in done.output if item.type == "function_call"]
        if not calls:
            return {"text": done.output_text, "called": called}
        for call in calls:
            json.loads(call.arguments)
            called.append(call.name)
            items.append({"type": "function_call_output", "call_id": call.call_id,
                          "output": WEATHER})  # fmt: skip
    return {"called": called}


for check in ("tools", "preamble", "undeclared"):
    report("responses", check)(responses_loop)


@report("responses", "tools_streamed")
def _(text):
    items, called = messages(text), []
    tools = [{"type": "function", **function} for function in FUNCTIONS]
    while len(called) < 4:
        with client.responses.stream(model=MODEL, input=items, tools=tools) as stream:
            done = stream.get_final_response()
        items += [item.model_dump(exclude={"parsed_arguments"}) for item in done.output]
        calls = [item for item in done.output if item.type == "function_call"]
        if not calls:
            return {"text": done.output_text, "called": called}
        for call in calls:
            assert "city" in call.parsed_arguments
            called.append(call.name)
            items.append({"type": "function_call_output", "call_id": call.call_id,
                          "output": WEATHER})  # fmt: skip
    return {"called": called}


@report("responses", "encrypted")
def _(text):
    return responses_loop(text, include=["reasoning.encrypted_content"], store=False)


@report("responses", "structured")
def _(text):
    done = client.responses.parse(model=MODEL, input=text, text_format=Trip)
    return {"value": done.output_parsed.model_dump()}


@report("responses", "too_long")
def _(text):
    try:
        client.responses.create(model=MODEL, input=text)
    except openai.BadRequestError as error:
        return {"error": ["BadRequestError"], "code": error.code, "param": error.param}


report.print()
