"""pydantic-ai's agents, with either API."""

from __future__ import annotations

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from reporting import ADDRESS, AGAIN, KEY, MODEL, WEATHER, Report

report = Report()


class Trip(BaseModel):
    city: str
    days: int


def get_time(city: str) -> str:
    """The time in a city."""
    return "Noon."


def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER


MODELS = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}


def model(api):
    client = AsyncOpenAI(base_url=ADDRESS, api_key=KEY, max_retries=0)
    return MODELS[api](MODEL, provider=OpenAIProvider(openai_client=client))


def parts(result, kind):
    return [part for message in result.all_messages() for part in message.parts
            if isinstance(part, kind)]  # fmt: skip


def thinking_of(result):
    """What a server shows of it is text in chat completions, and a detail in responses."""
    found = ""
    for part in parts(result, ThinkingPart):
        found += part.content or "".join((part.provider_details or {}).get("raw_content", ()))
    return found


def told(result):
    called = [part.tool_name for part in parts(result, ToolCallPart)]
    return {"text": result.output, "called": called}


for api in MODELS:

    @report(api, "plain")
    async def _(text, api=api):
        result = await Agent(model(api)).run(text)
        return {"text": result.output, "thinking": thinking_of(result)}

    @report(api, "streamed")
    async def _(text, api=api):
        async with Agent(model(api)).run_stream(text) as result:
            said = "".join([piece async for piece in result.stream_text(delta=True)])
            tokens = result.usage.total_tokens
            return {"text": said, "thinking": thinking_of(result), "tokens": tokens}

    async def loop(text, api=api):
        return told(await Agent(model(api), tools=[get_time, get_weather]).run(text))

    for check in ("tools", "preamble", "undeclared"):
        report(api, check)(loop)

    @report(api, "history")
    async def _(text, api=api):
        agent = Agent(model(api), tools=[get_time, get_weather])
        first = await agent.run(text)
        return told(await agent.run(AGAIN, message_history=first.all_messages()))

    @report(api, "tools_streamed")
    async def _(text, api=api):
        async with Agent(model(api), tools=[get_time, get_weather]).iter(text) as run:
            async for node in run:
                if Agent.is_model_request_node(node):
                    async with node.stream(run.ctx) as stream:
                        async for _ in stream:
                            pass
        return told(run.result)

    @report(api, "structured")
    async def _(text, api=api):
        result = await Agent(model(api), output_type=NativeOutput(Trip)).run(text)
        return {"value": result.output.model_dump()}

    @report(api, "structured_by_call")
    async def _(text, api=api):
        result = await Agent(model(api), output_type=ToolOutput(Trip)).run(text)
        return {"value": result.output.model_dump()}

    @report(api, "too_long")
    async def _(text, api=api):
        await Agent(model(api)).run(text)


report.print()
