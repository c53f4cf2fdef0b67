"""LangChain's model of OpenAI's API, with either of them, and LangGraph's loop of an agent."""

from __future__ import annotations

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.prebuilt import create_react_agent
from pydantic import BaseModel
from reporting import ADDRESS, AGAIN, KEY, MODEL, WEATHER, Report

report = Report()


class Trip(BaseModel):
    """A trip."""

    city: str
    days: int


@tool
def get_time(city: str) -> str:
    """The time in a city."""
    return "Noon."


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return WEATHER


def thinking_of(message, key="content"):
    """Chat completions' is left out by LangChain itself."""
    blocks = message.content if isinstance(message.content, list) else []
    parts = [part for block in blocks if block["type"] == "reasoning"
             for part in block.get(key, ())]  # fmt: skip
    return "".join(part["text"] for part in parts)


def model(api, **options):
    return ChatOpenAI(
        base_url=ADDRESS, api_key=KEY, model=MODEL, max_retries=0, timeout=120,
        use_responses_api=api == "responses", **options,
    )  # fmt: skip


def told(messages):
    calls = [call["name"] for message in messages for call in getattr(message, "tool_calls", ())]
    return {"text": messages[-1].text, "called": calls}


def loop(of, *texts):
    """One conversation, a text of the user after the other."""
    agent = create_react_agent(of, [get_time, get_weather])
    messages = []
    for text in texts:
        asked = {"messages": [*messages, ("user", text)]}
        for state in agent.stream(asked, {"recursion_limit": 8}, stream_mode="values"):
            messages = state["messages"]
    return told(messages)


for api in ("chat", "responses"):

    @report(api, "plain")
    def _(text, api=api):
        message = model(api).invoke(text)
        return {"text": message.text, "thinking": thinking_of(message)}

    @report(api, "streamed")
    def _(text, api=api):
        whole = None
        for chunk in model(api, stream_usage=True).stream(text):
            whole = chunk if whole is None else whole + chunk
        return {
            "text": whole.text,
            "thinking": thinking_of(whole),
            "tokens": whole.usage_metadata["total_tokens"],
        }

    @report(api, "parallel")
    def _(text, api=api):
        found = model(api).batch([f"{text} {i}" for i in range(3)])
        return {"texts": [message.text for message in found]}

    for check in ("tools", "preamble", "undeclared"):
        report(api, check)(lambda text, api=api: loop(model(api), text))
    report(api, "tools_streamed")(lambda text, api=api: loop(model(api, streaming=True), text))
    report(api, "history")(lambda text, api=api: loop(model(api), text, AGAIN))

    for method in ("json_schema", "function_calling"):

        @report(api, "structured" if method == "json_schema" else "structured_by_call")
        def _(text, api=api, method=method):
            found = model(api).with_structured_output(Trip, method=method).invoke(text)
            return {"value": found.model_dump()}

    @report(api, "too_long")
    def _(text, api=api):
        model(api).invoke(text)


# Its streams hold a summary of thinking, and what is encrypted.
KEPT = {"include": ["reasoning.encrypted_content"], "store": False}


@report("responses", "summary")
def _(text):
    whole = None
    for chunk in model("responses", reasoning={"summary": "auto"}).stream(text):
        whole = chunk if whole is None else whole + chunk
    return {"text": whole.text, "thinking": thinking_of(whole, "summary")}


@report("responses", "encrypted")
def _(text):
    return loop(model("responses", streaming=True, **KEPT), text)


report.print()
