"""Run by test_fork.py in a process of its own: engines, and forks of it. Prints what came of each.

A child that hangs is killed by its alarm, and its answer is null.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable

from gptoss import AsyncEngine, Engine, Error, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPT = "Once upon a time"


def in_child(work: Callable[[], object]) -> object:
    """What `work` returns in a forked child that then ends as programs do, or its Error's text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(90)
        try:
            answer = work()
        except Error as error:
            answer = str(error)
        os.write(writer, json.dumps(answer).encode())
        sys.exit()
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text and status == 0 else None


def make_engine() -> Engine:
    return Engine(device="cpu", threads=2, kv_bytes=8 << 20)


def make_groups() -> Engine:
    return Engine(sys.argv[1], device="cpu", threads=1, kv_bytes=8 << 20, tensor_parallel=2)


def tokens_of(engine: Engine) -> tuple[int, ...]:
    return engine.generate([5, 6, 7], GREEDY)[0].token_ids


async def async_tokens(engine: Engine) -> tuple[int, ...]:
    return (await AsyncEngine(engine).generate([5, 6, 7], GREEDY))[0].token_ids


def new_engine(make: Callable[[], Engine]) -> tuple[int, ...]:
    with make() as engine:
        return tokens_of(engine)


def close(engine: Engine) -> str:
    engine.close()
    with engine:
        pass
    return "closed"


def drop() -> str:
    global old, groups, stream
    del old, groups, stream
    gc.collect()
    return "dropped"


old = make_engine()
groups = make_groups()
tokens = tokens_of(old)
groups_tokens = tokens_of(groups)
stream = old.stream(PROMPT, GREEDY)
next(stream)
found = {
    "pid": os.getpid(),
    "tokens": tokens,
    "groups_tokens": groups_tokens,
    "generate": in_child(lambda: tokens_of(old)),
    "generate_groups": in_child(lambda: tokens_of(groups)),
    "stream": in_child(lambda: old.stream(PROMPT, GREEDY) and "a stream"),
    "open_stream": in_child(lambda: next(stream).text),
    "logits": in_child(lambda: old.logits([1, 2]).tolist()),
    "info": in_child(lambda: len(old.info())),
    "async": in_child(lambda: asyncio.run(async_tokens(old))),
    "close": in_child(lambda: close(old)),
    "close_groups": in_child(lambda: close(groups)),
    "drop": in_child(drop),
    "tokenizer": in_child(lambda: old.tokenizer.decode(old.tokenizer.encode(PROMPT))),
    "new_engine": in_child(lambda: new_engine(make_engine)),
    "new_groups": in_child(lambda: new_engine(make_groups)),
    "rest_in_parent": len(list(stream)),
    "tokens_in_parent": tokens_of(old),
}
print(json.dumps(found))
