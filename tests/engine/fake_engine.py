"""An `Engine` on the fake backend, with a small vocabulary of its own."""

from dataclasses import replace
from types import SimpleNamespace

import fake_backend as fake
from waiting import until

from gptoss import Engine, EngineOptions, Error
from gptoss.engine.load import Model, choose_device, prepare

CONTEXT = 400
WINDOW = 20
END = 49
# Letters, then pieces of "é" and "日", a piece that is not UTF-8, and an id without bytes.
PIECES = [bytes([ord("a") + i]) for i in range(26)]
PIECES += [b" ", b"\n", b"the", b" and", b"\xc3", b"\xa9", b"\xe6\x97", b"\xa5", b"\xff", b""]
PIECES += [bytes([ord("A") + i]) for i in range(fake.VOCABULARY - len(PIECES) - 1)]
PIECES += [b"<|endoftext|>"]


class FakeTokenizer:
    eos_ids = frozenset({END})
    longest = max(map(len, PIECES))

    def __init__(self):
        self.special_tokens = {"<|endoftext|>": END}

    def encode(self, text):
        return [PIECES.index(letter.encode()) for letter in text]

    def token_bytes(self, token):
        return PIECES[token]

    def decode(self, ids):
        return b"".join(PIECES[i] for i in ids).decode(errors="replace")

    def stream(self):
        return FakeDecoder()


class FakeDecoder:
    """Holds back bytes until they are UTF-8 or cannot become it."""

    def __init__(self):
        self._held = b""

    def push(self, token):
        self._held += PIECES[token]
        for keep in range(min(3, len(self._held)) + 1):
            head = self._held[: len(self._held) - keep]
            tail = self._held[len(self._held) - keep :]
            if not tail or b"\xc2" <= tail[:1] <= b"\xf4":
                try:
                    text = head.decode()
                except UnicodeDecodeError:
                    continue
                self._held = tail
                return text
        return self.flush()

    def flush(self):
        text, self._held = self._held.decode(errors="replace"), b""
        return text


def no_tokenizer():
    raise Error("tokenizer: there is none")


def make_engine(*, pages=400, tokenizer=True, backend=None, **options):
    """An engine whose backend is `engine.fake`."""
    backend = backend or fake.FakeBackend(WINDOW)
    config = SimpleNamespace(
        vocab_size=fake.VOCABULARY,
        sliding_window=WINDOW,
        context_length=CONTEXT,
        eos_token_ids=(),
        parameters=lambda: 0,
    )
    source = SimpleNamespace(
        config=config, name="fake", layout="fake", directory=None, close=lambda: None
    )
    options.setdefault("kv_bytes", pages * fake.FakeBackend.page_bytes)
    asked = EngineOptions(**options)
    cpu = {"name": "cpu", "available": True, "reason": ""}
    cuda = {"name": "cuda", "available": False, "reason": "no device was found"}
    model = Model(source, backend, choose_device(asked.device, [cuda, cpu]))
    loaded = replace(
        prepare(model, asked), load_tokenizer=FakeTokenizer if tokenizer else no_tokenizer
    )
    engine = Engine.over(loaded)
    engine.fake = backend
    return engine


def settle(engine):
    """Wait until cancelled requests are gone; nothing may be left of them."""

    def settled():
        info = engine.info()
        return info["kv_pages_free"] == info["kv_pages"] and not info["running"] + info["waiting"]

    until(settled, "the end of all requests and the return of their pages")
