"""A model that writes what a test tells it to, when it tells it to, and a browser to look at it."""

import shutil
import threading
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec

import pytest
from byte_vocabulary import WORDS
from scripted import ANSWER, ROOMY, OfBytes
from serving import serving
from waiting import PATIENCE, until_async

from gptoss.errors import Error
from gptoss.request.result import Delta, TokenLogprob
from gptoss.server.api import app as server

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NO_BROWSER = (
    "playwright is not installed (pip install '.[test]')"
    if find_spec("playwright") is None
    else None
    if CHROMIUM
    else "no chromium, chromium-browser or google-chrome on PATH"
)
in_browser = pytest.mark.skipif(NO_BROWSER is not None, reason=str(NO_BROWSER))


class Writer:
    """An AsyncEngine: each request gets the next of `texts`, the last one for ever.

    A text is harmony, with "‖" where it waits until `go` is called, and "✗" where it fails.
    cancelled: how many streams were left before their end.
    """

    def __init__(self, *texts):
        self.texts = list(texts)
        self.params, self.cancelled, self._go = [], 0, threading.Semaphore(0)

    def go(self):
        self._go.release()

    engine = ROOMY

    def stream(self, prompt, params, *, loop, priority, client, salt):
        self.params.append(params)
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return _Stream(self, text, len(prompt), params.logprobs)

    async def wait(self):
        await until_async(lambda: self._go.acquire(blocking=False), "go()")


class _Stream:
    choices, timings, cancelled = 1, (), ()

    def __init__(self, writer, text, prompt_tokens, logprobs):
        self.prompt_tokens = prompt_tokens
        self._writer, self._text, self._logprobs = writer, text, logprobs
        self._ended = self._left = False

    def fail(self, error):
        raise error

    def cancel(self):
        if not self._ended and not self._left:
            self._left = True
            self._writer.cancelled += 1

    end = cancel

    async def __aiter__(self):
        tokens = WORDS.encode(self._text)
        waits, fails = "‖".encode(), "✗".encode()
        i = 0
        while i < len(tokens) and not self._left:
            mark = bytes(token for token in tokens[i : i + 3] if token < 256)
            if mark == waits:
                await self._writer.wait()
                i += 3
                continue
            if mark == fails:
                raise Error("the model fell over")
            i += 1
            finish = "stop" if i == len(tokens) else None
            self._ended = finish is not None
            yield Delta("", (tokens[i - 1],), finish, logprobs=self._probabilities(tokens[i - 1]))

    def _probabilities(self, token):
        if self._logprobs is None:
            return None
        # The same letter gets the same probability: 0.95, 0.75, …; "?" is nearly as likely.
        share = (0.95, 0.75, 0.45, 0.2, 0.05)[token % 5]
        others = [(token, share), (63, share * 0.9), (10, 0.03), (32, 0.02)][: self._logprobs]
        top = tuple(_token(each, chance) for each, chance in others)
        return (_token(token, share, top),)


def _token(token, chance, top=()):
    from math import log

    return TokenLogprob(token, bytes([token % 256]), log(chance), top)


@contextmanager
def writing(engine, monkeypatch, writer, **options):
    """The address of a server whose model is `writer`, and what the model was shown."""
    chat = OfBytes()
    monkeypatch.setattr(server, "load_chat", lambda tokenizer: chat)
    monkeypatch.setattr(server, "AsyncEngine", lambda engine: writer)
    app = server.create_app(engine, server.ServerOptions("gpt-oss-20b", **options))
    with serving(app) as address:
        yield address, chat.asked


class Visit:
    """A page that is open in a browser. Whatever it complains of, and asks others for, is noted."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.complaints, self.elsewhere = [], []
        page.on("console", lambda said: self._note(said) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._asked)
        page.goto(address + "/")

    def _note(self, said):
        # Chromium itself says this of every answer that is an error; the page shows those.
        if "Failed to load resource" not in said.text:
            self.complaints.append(said.text)

    def _asked(self, request):
        if not request.url.startswith((self.address + "/", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def ask(self, text="Two and two?"):
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")

    @property
    def answer(self):
        """The newest answer."""
        return self.page.locator("article.answer").last

    @property
    def done(self):
        """The newest answer, when it is complete."""
        return self.page.locator("article.answer[aria-busy=false]").last


@contextmanager
def visits(chromium, engine, monkeypatch):
    """visit(*texts, viewport, color_scheme, **options of the server) → Visit of a page whose model
    writes the texts; `app`: of this server instead. At the end, nothing was asked of others, and
    nothing was complained of."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE * 1000)
    with ExitStack() as stack:
        made = []

        def visit(*texts, viewport=(1100, 700), color_scheme="light", app=None, **options):
            writer, asked = Writer(*texts or (ANSWER,)), None
            if app is None:
                served = writing(engine, monkeypatch, writer, **options)
                address, asked = stack.enter_context(served)
            else:
                address = stack.enter_context(serving(app))
            size = dict(zip(("width", "height"), viewport, strict=True))
            context = chromium.new_context(viewport=size, color_scheme=color_scheme)
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE * 1000)
            seen = Visit(context.new_page(), address)
            seen.writer, seen.asked = writer, asked
            made.append(seen)
            return seen

        yield visit
        for seen in made:
            assert seen.complaints == [] and seen.elsewhere == []


@contextmanager
def browser():
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        play = stack.enter_context(sync_playwright())
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stack.callback(made.close)
        yield made
