"""OpenAI's Agents SDK, with either API."""

from __future__ import annotations

import agents
import openai
from pydantic import BaseModel
from reporting import ADDRESS, AGAIN, KEY, MODEL, WEATHER, Report

agents.set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=ADDRESS, api_key=KEY, max_retries=0)
report = Report()


class Trip(BaseModel):
    city: str
    days: int


@agents.function_tool
def get_time(city: str) -> str:
    """The time in a city."""
    return "Noon."


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER


MODELS = {
    # It sends thinking back to models whose names it knows, or where it is told to.
    "chat": agents.OpenAIChatCompletionsModel(
        MODEL, client, should_replay_reasoning_content=lambda context: True
    ),
    "responses": agents.OpenAIResponsesModel(MODEL, client),
}


def agent(api, **options):
    return agents.Agent(name="it", model=MODELS[api], **options)


def told(result):
    """What a run found, and what a second one in the same conversation is given."""
    items = result.to_input_list()
    calls = [item for item in items if item.get("type") == "function_call"]
    return {"text": result.final_output, "called": [call["name"] for call in calls]}


def thinking_of(result):
    parts = []
    for item in result.new_items:
        if isinstance(item, agents.ReasoningItem):
            parts += [part.text for part in item.raw_item.content or item.raw_item.summary]
    return "".join(parts)


for api in MODELS:

    @report(api, "plain")
    async def _(text, api=api):
        result = await agents.Runner.run(agent(api), text)
        return {"text": result.final_output, "thinking": thinking_of(result)}

    @report(api, "streamed")
    async def _(text, api=api):
        settings = agents.ModelSettings(include_usage=True)
        result = agents.Runner.run_streamed(agent(api, model_settings=settings), text)
        whole = {"text": "", "thinking": ""}
        async for event in result.stream_events():
            kind = getattr(event.data, "type", "") if event.type == "raw_response_event" else ""
            if kind == "response.output_text.delta":
                whole["text"] += event.data.delta
            elif kind == "response.reasoning_text.delta":
                whole["thinking"] += event.data.delta
        return {**whole, "tokens": result.context_wrapper.usage.total_tokens}

    async def loop(text, api=api):
        return told(await agents.Runner.run(agent(api, tools=[get_time, get_weather]), text))

    async def loop_streamed(text, api=api):
        result = agents.Runner.run_streamed(agent(api, tools=[get_time, get_weather]), text)
        async for _ in result.stream_events():
            pass
        return told(result)

    for check in ("tools", "preamble", "undeclared"):
        report(api, check)(loop)
    report(api, "tools_streamed")(loop_streamed)

    @report(api, "history")
    async def _(text, api=api):
        it = agent(api, tools=[get_time, get_weather])
        first = await agents.Runner.run(it, text)
        again = [*first.to_input_list(), {"role": "user", "content": AGAIN}]
        return told(await agents.Runner.run(it, again))

    @report(api, "structured")
    async def _(text, api=api):
        result = await agents.Runner.run(agent(api, output_type=Trip), text)
        return {"value": result.final_output.model_dump()}

    @report(api, "too_long")
    async def _(text, api=api):
        try:
            await agents.Runner.run(agent(api), text)
        except openai.BadRequestError as error:
            return {"error": ["BadRequestError"], "code": error.code, "param": error.param}


report.print()
