"""The prefix cache, drafts and overlapped steps on a real model: the same texts, to the token."""

import asyncio

import pytest
from fake_engine import settle

from gptoss import AsyncEngine, Engine, Error, SamplingParams

STORY = "Once upon a time there was a little dog. " * 12
OPTIONS = {"activation": "f32", "kv_bytes": 64 << 20, "threads": 1}


@pytest.fixture(scope="module")
def engine():
    with Engine(overlap=True, **OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain():
    with Engine(prefix_cache=False, speculation=False, overlap=False, **OPTIONS) as engine:
        yield engine


def params(**options):
    return SamplingParams(**{"max_tokens": 40, "ignore_eos": True, "temperature": 0, **options})


async def text_of(stream):
    return "".join([delta.text async for delta in stream])


def cached(completion):
    return completion.timing.cached_tokens


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
def test_a_prompt_again(engine, plain, options):
    found = [engine.generate(STORY, params(**options))[0] for _ in range(3)]
    (wanted,) = plain.generate(STORY, params(**options))
    assert [c.text for c in found] == [wanted.text] * 3
    assert cached(found[1]) == cached(found[2]) > 100 and cached(wanted) == 0
    settle(engine)


def test_a_conversation(engine, plain):
    """Each turn begins after all that was said before."""
    text, before = "The cat said:", 0
    for turn in range(4):
        (found,) = engine.generate(text, params(seed=turn, temperature=1.0))
        (wanted,) = plain.generate(text, params(seed=turn, temperature=1.0))
        assert found.text == wanted.text
        assert cached(found) >= before
        before = (len(engine.tokenizer.encode(text)) + 20) // 16 * 16 - 16
        text += found.text + "\n\nAnd then:"
    assert before > 100


def test_choices_share_their_prompt(engine, plain):
    found = engine.generate(STORY + "And", params(n=5, seed=3, temperature=1.0))
    wanted = plain.generate(STORY + "And", params(n=5, seed=3, temperature=1.0))
    assert [c.text for c in found] == [c.text for c in wanted]
    assert sum(cached(c) > 0 for c in found) >= 4


def test_logits_are_computed_anew(engine):
    ids = engine.tokenizer.encode(STORY)[:60]
    assert engine.logits(ids).shape[0] == 60 == engine.logits(ids).shape[0]


def test_repetitions_are_drafted(engine, plain, monkeypatch):
    """A text that goes round in circles takes far fewer steps, and is the same."""
    monkeypatch.setattr(engine._worker.cost, "share", lambda sequences: 0.05)  # whatever it costs
    circles, longer = "one two three " * 4, params(max_tokens=150)
    before = engine._worker.steps, plain._worker.steps
    (found,), (wanted,) = engine.generate(circles, longer), plain.generate(circles, longer)
    assert found.token_ids == wanted.token_ids
    assert plain._worker.steps - before[1] >= 150
    assert engine._worker.steps - before[0] < 100


def test_a_stream_with_drafts_gives_every_token_once(engine, plain):
    deltas = list(engine.stream(STORY, params(max_tokens=80)))
    assert [d.token_ids for d in deltas] == [
        (token,) for token in plain.generate(STORY, params(max_tokens=80))[0].token_ids
    ]


def test_many_at_a_time_overlapped(engine, plain):
    prompts = [f"{STORY[: 41 * (i % 4)]}Number {i} said" for i in range(20)]
    each = [params(seed=i, temperature=0.8, max_tokens=5 + 3 * i) for i in range(20)]
    found, wanted = engine.generate(prompts, each), plain.generate(prompts, each)
    assert [c.text for c in found] == [c.text for c in wanted]
    assert [len(c.token_ids) for c in found] == [5 + 3 * i for i in range(20)]
    settle(engine)


def test_a_full_cache_gives_way(tiny_a_words):
    with Engine(tiny_a_words, kv_bytes=1 << 20, activation="f32", threads=1) as engine:
        capacity = engine.info()["kv_tokens"]
        for i in range(12):
            prompt = [(7 * i + j) % 200 for j in range(capacity // 3)]
            engine.generate([prompt], params(max_tokens=3))
            info = engine.info()
            assert info["kv_pages_free"] == info["kv_pages"]
        assert engine.info()["kv_pages_kept"] > 0


def test_priority_and_clients(engine):
    async def run():
        asynchronous = AsyncEngine(engine)
        streams = [
            asynchronous.stream("abc", params(seed=i), priority=i % 2, client=str(i))
            for i in range(6)
        ]
        return await asyncio.gather(*(text_of(stream) for stream in streams))

    assert len(set(asyncio.run(run()))) == 1
    settle(engine)


def test_a_stream_that_is_failed(engine):
    async def run():
        stream = AsyncEngine(engine).stream("abc", params(max_tokens=300))
        await anext(stream)
        stream.fail(Error("too late"))
        with pytest.raises(Error, match="too late"):
            async for _ in stream:
                pass
        stream.fail(Error("again"))  # it is over
        assert [delta async for delta in stream] == []

    asyncio.run(run())
    settle(engine)
