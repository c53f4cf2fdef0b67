"""instructor: objects out of answers and out of calls."""

from __future__ import annotations

import instructor
from openai import OpenAI
from pydantic import BaseModel
from reporting import ADDRESS, KEY, MODEL, Report

report = Report()


class Trip(BaseModel):
    city: str
    days: int


WAYS = {
    "tools": instructor.Mode.TOOLS,
    "tools_strict": instructor.Mode.TOOLS_STRICT,
    "json_schema": instructor.Mode.JSON_SCHEMA,
    "responses_tools": instructor.Mode.RESPONSES_TOOLS,
}


def client(way):
    inner = OpenAI(base_url=ADDRESS, api_key=KEY, max_retries=0)
    return instructor.from_openai(inner, mode=WAYS[way])


for way in WAYS:

    @report(way, "structured_by_call" if way != "json_schema" else "structured")
    def _(text, way=way):
        asked = [{"role": "user", "content": text}]
        found = client(way).create(model=MODEL, messages=asked, response_model=Trip, max_retries=0)
        return {"value": found.model_dump()}


@report("json_schema", "structured_streamed")
def _(text):
    asked = [{"role": "user", "content": text}]
    found = None
    for partial in client("json_schema").create_partial(
        model=MODEL, messages=asked, response_model=Trip, max_retries=0
    ):
        found = partial
    return {"value": found.model_dump()}


report.print()
