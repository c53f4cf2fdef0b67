"""What a model may write in the harmony format, as a Lark grammar of llguidance's dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gptoss.chat.conversation import Tool
from gptoss.errors import Error
from gptoss.request import Grammar, json_rule

_TEXT = "TEXT: /(.|\\n)*/\n"
# A model whose answer is constrained must not think for ever: a call or an answer comes then.
_MAX_BEFORE = 16
# Models leave the blank out, and the special token.
_KIND = '(" "? <|constrain|> "json" | " json" | " code")?'


def answer_grammar(
    tools: Sequence[Tool],
    answer: Grammar | None = None,
    must_call: bool = False,
    hold: bool = True,
    continues: bool = False,
    built_in: Sequence[str] = (),
) -> str | None:
    """A grammar of what follows ``<|start|>assistant``; None where everything is allowed.

    Headers are well-formed and call nobody but these tools; thinking and what is said before a call
    stay free. One call ends the answer, as ``<|call|>`` ends what a model writes at once.

    Args:
        tools: those that may be called. The arguments of strict ones fit their schemas, those of
            others are any JSON object.
        answer: of the final channel; None: any text.
        must_call: whether one of the tools is called instead of an answer.
        hold: whether calls are held to the tools even where nothing else is asked for.
        continues: whether the prompt ended inside the answer, which is then all that comes.
        built_in: other recipients that may be called, with any text: "python" and such.

    Raises:
        Error: a strict tool's schema is none, or asks for what cannot be held to; names the tool.
    """
    if continues:
        return None if answer is None else f"start: answer <|return|>\nanswer: {answer.rule}\n"
    constrained = answer is not None or must_call or any(tool.strict for tool in tools)
    if not constrained and not (hold and tools):
        return None
    endings, rules = [], [_TEXT]
    if not must_call:
        kind = ' (" "? <|constrain|> "json")?' if answer is not None else ""
        rules += [
            f'final: <|channel|> "final"{kind} <|message|> answer <|return|>',
            f"answer: {'TEXT' if answer is None else answer.rule}",
        ]
        endings.append("final")
    free = [tool.name for tool in tools if not tool.strict]
    if free:
        endings.append("call")
        rules += [_call("call", [f"functions.{name}" for name in free], "object"),
                  f"object: {json_rule({'type': 'object'})}"]  # fmt: skip
    for i, tool in enumerate(tool for tool in tools if tool.strict):
        endings.append(f"call_{i}")
        rules += [_call(f"call_{i}", [f"functions.{tool.name}"], f"arguments_{i}"),
                  f"arguments_{i}: {_schema_rule(tool)}"]  # fmt: skip
    if built_in:
        endings.append("built_in")
        rules.append(_call("built_in", list(built_in), "TEXT"))
    channels = '"analysis"' if not tools and not built_in else '("analysis" | "commentary")'
    rules.append(f'before: <|channel|> {channels} <|message|> TEXT <|end|> <|start|> "assistant"')
    times = f"{{0,{_MAX_BEFORE}}}" if must_call or answer is not None else "*"
    return "\n".join([f"start: before{times} ({' | '.join(endings)})", *rules]) + "\n"


def _call(rule: str, recipients: Sequence[str], arguments: str) -> str:
    """A call: models put the recipient before the channel or behind it."""
    names = " | ".join(json.dumps(f" to={name}") for name in recipients)
    return (
        f"{rule}: (<|channel|> {rule}_channel {rule}_name | {rule}_name <|channel|> {rule}_channel)"
        f" {_KIND} <|message|> {arguments} <|call|>\n"
        f'{rule}_channel: "commentary" | "analysis"\n'
        f"{rule}_name: {names}"
    )


def _schema_rule(tool: Tool) -> str:
    """Raises Error, with the tool's name, where its schema cannot be held to."""
    schema = tool.parameters or {"type": "object"}
    try:
        Grammar.json(schema)
        return json_rule(schema)
    except Error as error:
        raise Error(f"tools: {tool.name}: {error}", field="tools") from None
