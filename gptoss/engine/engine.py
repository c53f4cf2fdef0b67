"""The engine: a model, a page pool and a worker thread behind a few plain calls."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from functools import wraps
from inspect import Parameter, Signature, signature
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from gptoss.engine.constraint import CompiledGrammar, GrammarVocabulary
from gptoss.engine.drafts import Drafter
from gptoss.engine.generation import Generation
from gptoss.engine.load import Loaded, load
from gptoss.engine.options import EngineOptions, check_integer
from gptoss.engine.prompts import (
    Prompt,
    as_params,
    as_prompts,
    check_vocabulary,
    checked_ids,
)
from gptoss.engine.request import Outbox, Outlet, Request, Scoring
from gptoss.engine.scores import Scorer, Scores
from gptoss.engine.sequence import Account
from gptoss.engine.stream import Stream, Submission
from gptoss.engine.text import TextStream
from gptoss.engine.worker import Worker
from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.request import (
    MAX_LOGPROBS,
    SEED_LIMIT,
    Completion,
    Delta,
    Grammar,
    SamplingParams,
    Score,
    derive_seed,
    join,
)
from gptoss.tokenizer import Tokenizer

MAX_PRIORITY = (1 << 63) - 1
LOGITS_BYTES = 64 << 20  # whole rows of logits that one step may hold for prompts
MAX_SCORES = 1 << 20  # likely tokens told of one prompt, all places together

_P = ParamSpec("_P")


@dataclass(frozen=True)
class _Arguments(EngineOptions):
    """All that an engine is made with: its options, and a callback for the progress of loading."""

    progress: Callable[[int, int], None] | None = field(default=None, kw_only=True)


_Arguments.__init__.__qualname__ = "Engine.__init__"  # what a TypeError calls it


def _takes(
    made: Callable[_P, _Arguments],
) -> Callable[[Callable[[Engine, _Arguments], None]], Callable[Concatenate[Engine, _P], None]]:
    """Gives a constructor the parameters of another, for type checkers and `help` too."""

    def decorate(
        constructor: Callable[[Engine, _Arguments], None],
    ) -> Callable[Concatenate[Engine, _P], None]:
        @wraps(constructor)
        def taking(self: Engine, *values: _P.args, **named: _P.kwargs) -> None:
            constructor(self, made(*values, **named))

        own = Parameter("self", Parameter.POSITIONAL_ONLY)
        parameters = signature(made).parameters.values()
        taking.__signature__ = Signature([own, *parameters])  # type: ignore[attr-defined]
        return taking

    return decorate


class Engine:
    """A gpt-oss model that generates text.

    Takes the fields of `EngineOptions`, the first five also by position, and `progress`, which is
    called with (bytes read, bytes in all) while the weights are loaded.

    All calls may be made from any thread, and any number of streams may be open at once; they
    share every step. An engine is closed by `close()`, by leaving a `with` block, or when the
    last reference to it goes.

    An engine belongs to the process that made it. In a forked child its calls raise Error; the
    child makes one of its own, or is started by multiprocessing's "spawn", which is the only way
    where the parent has used a GPU.

    Raises:
        Error: the checkpoint is damaged, the device unknown, an option out of range.
    """

    @_takes(_Arguments)
    def __init__(self, arguments: _Arguments) -> None:
        self._begin(load(arguments, arguments.progress))

    @classmethod
    def from_options(
        cls, options: EngineOptions, progress: Callable[[int, int], None] | None = None
    ) -> Engine:
        """An engine with these options. progress: as above."""
        return cls.over(load(options, progress))

    @classmethod
    def over(cls, loaded: Loaded) -> Engine:
        """An engine over what `gptoss.engine.load` opened, or over parts of another make.

        The engine owns them from now on, and closes them.
        """
        engine = cls.__new__(cls)
        engine._begin(loaded)
        return engine

    def _begin(self, loaded: Loaded) -> None:
        model = loaded.model
        self._source, self._backend = model.source, model.backend
        self._config = model.source.config
        self._speculates = loaded.speculation
        self._load_tokenizer = loaded.load_tokenizer
        self._tokenizer: Tokenizer | None = None
        self._no_tokenizer: Error | None = None  # why there is none
        self._grammars: GrammarVocabulary | None = None  # made when a grammar is first asked for
        self._grammars_lock = threading.Lock()
        try:
            self._worker = Worker(
                model.backend,
                loaded.scheduler,
                at_end=model.close,
                overlap_from=1 if loaded.overlap else None,
            )
            self._worker.start()
        except BaseException:  # no thread can be started
            model.close()
            raise
        # Runs when the engine is closed, collected, or the interpreter ends, whichever is first.
        self._finalizer = weakref.finalize(self, self._worker.close)

    # The model.

    @property
    def config(self) -> ModelConfig:
        """Hyper-parameters of the model."""
        return self._config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, loaded when first asked for.

        Raises:
            Error: no vocabulary is at hand; says which file to put where.
        """
        if self._no_tokenizer is not None:
            raise Error(str(self._no_tokenizer))
        if self._tokenizer is None:
            try:
                self._tokenizer = self._load_tokenizer()
            except Error as error:
                self._no_tokenizer = error
                raise
        return self._tokenizer

    def info(self) -> dict[str, Any]:
        """What runs here: the backend's own description, the model, the cache, the queue.

        The numbers of the queue are those of the moment; a step may be changing them.
        """
        self._worker.check_process()
        scheduler = self._worker.scheduler
        return {
            **self._backend.info(),
            "model": self._source.name,
            "layout": self._source.layout,
            "parameters": self._config.parameters(),
            "context_length": self._config.context_length,
            "kv_pages": scheduler.pool.size,
            "kv_pages_free": scheduler.pool.free,
            "kv_page_bytes": self._backend.page_bytes,
            "kv_page_tokens": scheduler.page_size,
            "kv_tokens": scheduler.capacity(),
            "max_batch": scheduler.max_running,
            "step_tokens": scheduler.step_tokens,
            "kv_pages_kept": scheduler.pool.kept,
            "prompt_tokens": scheduler.prompt_tokens,
            "cached_tokens": scheduler.cached_tokens,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "steps": self._worker.steps,
            "step_seconds": self._worker.step_seconds,
            "preemptions": scheduler.preemptions,
        }

    # Work.

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> Stream:
        """Generate, handing out each token's text as it comes.

        Args:
            prompt: text, or token ids. An empty text begins where a document begins.
            priority: lower goes first, and may send others back to the queue.

        Returns:
            An iterator of `Delta`. With n > 1 the deltas of all choices come interleaved, told
            apart by `index`. The model runs while the iterator is read, at most one token ahead.
            Leaving it (`close()`, dropping it, Ctrl-C) cancels the request.

        Raises:
            Error: the prompt or the parameters do not suit the model.
        """
        outbox = Outbox()
        return Stream(self.submit(self.prepare(prompt, params, outbox, priority=priority)), outbox)

    def generate(
        self,
        prompts: Prompt | SequenceOf[Prompt],
        params: SamplingParams | SequenceOf[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Generate for one or many prompts, as many at a time as memory allows.

        Args:
            prompts: a text, a list of token ids, or a sequence of these.
            params: for all prompts, or one for each.

        Returns:
            One flat list, in order of prompts, then of choices: completion c of prompt p is at
            p·n + c where all ask for the same n. `prompt_index` and `index` tell them apart.

        Raises:
            Error: a prompt or its parameters do not suit the model; nothing has run then.
        """
        batch = as_prompts(prompts)
        outbox = Outbox()
        requests: list[Generation | Scores] = []
        account = Account()  # one request to the engine, however many prompts
        for index, (prompt, own) in enumerate(
            zip(batch, as_params(params, len(batch)), strict=True)
        ):
            try:
                requests += self.prepare(prompt, own, outbox, prompt_index=index, account=account)
            except Error as error:
                if len(batch) == 1:
                    raise
                raise Error(f"prompt {index} of {len(batch)}: {error}", field=error.field) from None
        for request in requests:
            request.demand = request.sequence.limit + 1  # more than it can produce: run to the end
            request.eager = False
        deltas: dict[tuple[int, int], list[Delta]] = {}
        submission = self.submit(requests)
        try:
            while len(deltas) < len(requests):
                key, items = outbox.get()
                if isinstance(items[-1], BaseException):
                    raise items[-1]
                deltas[key] = items
                submission.finish(key)
        finally:
            submission.close()
        return [join(deltas[p, c], prompt_index=p) for p, c in sorted(deltas)]

    def logits(self, token_ids: SequenceOf[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Logits after every token of a given text ("teacher-forced").

        Args:
            token_ids: 1 to context_length ids.

        Returns:
            float32 [len(token_ids), vocab_size]; row i predicts token i + 1.
        """
        ids = self._check_ids(token_ids, "token_ids")
        if len(ids) > self._config.context_length:
            raise Error(
                f"token_ids: expected at most {self._config.context_length} (the model's "
                f"context), found {len(ids)}",
                field="token_ids",
            )
        vocabulary = self._config.vocab_size
        outbox = Outbox()
        scoring = Scoring(ids, outbox, max_chunk=self._max_rows)
        result = np.empty((len(ids), vocabulary), np.float32)
        done = 0
        submission = self.submit([scoring])
        try:
            while done < len(ids):
                _, items = outbox.get()
                for item in items:
                    if isinstance(item, BaseException):
                        raise item
                    first, rows = item
                    result[first : first + len(rows)] = rows
                    done = first + len(rows)
        finally:
            submission.close()
        return result

    def score(self, prompt: Prompt, continuation: Prompt, *, top: int = 0) -> Score:
        """How likely a continuation is: the log-probability of each of its tokens, given the prompt
        and those before it, from one pass over both.

        Args:
            prompt: text, or token ids, at least one; an empty text begins where a document begins.
            continuation: the same. A text is split into tokens by itself, whatever it follows.
            top: how many of the most likely tokens to tell at each place, up to 100.

        Returns:
            T entries, one for each token of the continuation. The T × vocabulary logits are never
            held: rows are computed some 64 MB at a time, beside the steps of other requests.

        Raises:
            Error: both together are longer than the model's context, or hold what is no token.
        """
        return self.score_all(prompt, [continuation], top=top)[0]

    def score_all(
        self, prompt: Prompt, continuations: SequenceOf[Prompt], *, top: int = 0
    ) -> list[Score]:
        """As `score`, of several continuations of one prompt, which is computed once."""
        top = check_integer("top", top, 0, MAX_LOGPROBS)
        start = self._prompt_ids(prompt)
        outbox, account = Outbox(), Account()
        requests = []
        for index, continuation in enumerate(continuations):
            more = self._continuation_ids(continuation)
            tokens = start + more
            most = self._config.context_length - len(start)
            self._check_length("continuation", len(more), most)
            self._check_scores("top", len(more), top)
            requests.append(
                self._scores(tokens, len(start), top, outbox, key=index, account=account)
            )
        found: dict[int, Score] = {}
        submission = self.submit(requests)
        try:
            while len(found) < len(requests):
                key, items = outbox.get()
                if isinstance(items[-1], BaseException):
                    raise items[-1]
                found[key] = items[-1].prompt
                submission.finish(key)
        finally:
            submission.close()
        return [found[index] for index in range(len(requests))]

    # The end.

    def close(self) -> None:
        """Stop after the step in progress and free the model; harmless when repeated.

        Streams that are still open raise an Error when read.
        """
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The seam for front ends: requests, made and submitted.

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        outbox: Outlet,
        prompt_index: int = 0,
        *,
        priority: int = 0,
        client: str = "",
        account: Account | None = None,
        salt: str = "",
    ) -> list[Generation | Scores]:
        """Check a prompt and its parameters, and make of them the requests to submit.

        Args:
            prompt: text, or token ids. outbox: where what they produce is to go, as
                ((prompt_index, choice), list of `Delta`, or an exception as the last item).
            priority: lower goes first.
            client: whom it is for; clients share the engine alike, and so do a client's requests.
            account: shared by what is to count as one request; None: these are one.
            salt: prefixes are taken from the cache only where they were put with the same.

        Returns:
            One for each of the n choices; where no token is to be drawn, one.

        Raises:
            Error: the prompt or the parameters do not suit the model.
        """
        params = SamplingParams() if params is None else params
        self._worker.check_process()
        if not isinstance(params, SamplingParams):
            raise Error(
                f"params: expected SamplingParams, found {type(params).__name__}", field="params"
            )
        priority = check_integer("priority", priority, -MAX_PRIORITY, MAX_PRIORITY)
        ids = self._prompt_ids(prompt)
        check_vocabulary(params, self._config.vocab_size)
        tokenizer = self._tokenizer_or_none(params)
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos or params.grammar is not None:  # whose end is the grammar's
            stop_ids |= set(self._config.eos_token_ids)
            stop_ids |= tokenizer.eos_ids if tokenizer else frozenset()
        seed = secrets.randbelow(SEED_LIMIT) if params.seed is None else params.seed
        cost = self._worker.cost
        grammar = self._compile(params.grammar) if params.grammar else None
        account = account or Account()
        if params.prompt_logprobs is not None:
            self._check_scores("prompt_logprobs", len(ids), params.prompt_logprobs)
            if params.max_tokens == 0:
                self._check_length("prompt", len(ids), self._config.context_length)
                return [
                    self._scores(
                        ids,
                        1,
                        params.prompt_logprobs,
                        outbox,
                        key=(prompt_index, 0),
                        priority=priority,
                        client=client,
                        account=account,
                        salt=salt,
                    )
                ]
        max_tokens = self._max_tokens(len(ids), params.max_tokens)
        return [
            Generation(
                ids,
                params,
                seed=derive_seed(seed, index),
                max_tokens=max_tokens,
                stop_ids=stop_ids,
                text=TextStream(
                    tokenizer.stream(), params.stop_strings, params.include_stop_str_in_output
                )
                if tokenizer
                else None,
                token_bytes=tokenizer.token_bytes if tokenizer else lambda token: b"",
                outbox=outbox,
                key=(prompt_index, index),
                index=index,
                constraint=grammar.begin() if grammar else None,
                drafter=Drafter(ids, cost) if self._speculates else None,
                # All choices have one prompt.
                scorer=self._scorer(ids, params.prompt_logprobs) if index == 0 else None,
                max_rows=self._max_rows,
                vocab_size=self._config.vocab_size,
                priority=priority,
                client=client,
                account=account,
                salt=salt,
            )
            for index in range(params.n)
        ]

    def submit(self, requests: SequenceOf[Request]) -> Submission:
        """Let prepared requests run, until they end or the submission is cancelled.

        Raises:
            Error: one can never fit the cache, or the engine is closed or another process's; none
                runs then.
        """
        return Submission(self, self._worker, requests)

    @property
    def _max_rows(self) -> int:
        """Most rows of logits that one step may hold for prompts."""
        return max(1, LOGITS_BYTES // (4 * self._config.vocab_size))

    def _scorer(self, ids: list[int], top: int | None) -> Scorer | None:
        return None if top is None else Scorer(ids, 1, top, self._config.vocab_size)

    def _scores(
        self, tokens: list[int], first: int, top: int, outbox: Outlet, **more: Any
    ) -> Scores:
        return Scores(
            tokens,
            first,
            top=top,
            vocab_size=self._config.vocab_size,
            max_rows=self._max_rows,
            outbox=outbox,
            **more,
        )

    def _continuation_ids(self, continuation: Prompt) -> list[int]:
        if not isinstance(continuation, str):
            return self._check_ids(continuation, "continuation")
        ids = self.tokenizer.encode(continuation)
        if not ids:
            raise Error("continuation: expected a token at least, found none", field="continuation")
        return ids

    @staticmethod
    def _check_scores(option: str, tokens: int, top: int) -> None:
        if tokens * top > MAX_SCORES:
            raise Error(
                f"{option}: expected at most {MAX_SCORES // tokens} for {tokens} tokens, "
                f"found {top}",
                field=option,
            )

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """A grammar for this model's vocabulary."""
        with self._grammars_lock:
            if self._grammars is None:
                eos = self.tokenizer.eos_ids | set(self._config.eos_token_ids)
                self._grammars = GrammarVocabulary(self.tokenizer, self._config.vocab_size, eos)
        # Nobody waits for somebody else's grammar.
        return self._grammars.compile(grammar)

    def _max_tokens(self, prompt: int, max_tokens: int | None) -> int:
        """Most tokens that a request may draw: what it asks for, and what there is room for."""
        context = self._config.context_length
        self._check_length("prompt", prompt, context - 1)
        if max_tokens is None:
            # Not the caller's number: make do with the cache there is.
            spare = self._worker.scheduler.capacity() + 1 - prompt
            return min(context - prompt, max(1, spare))
        return min(context - prompt, max_tokens)

    def _check_length(self, field: str, tokens: int, most: int) -> None:
        if tokens > most:
            raise Error(
                # Clients look for the code, or for "prompt is too long", or for OpenAI's words.
                f"{field}: expected at most {most} tokens, found {tokens}: the {field} is too "
                f"long, this model's maximum context length is {self._config.context_length} "
                "tokens, prompt and output together",
                field=field,
                code="context_length_exceeded",
            )

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return self._check_ids(prompt)
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise Error(
                f"prompt: expected text, found a lone surrogate at index {error.start}",
                field="prompt",
            ) from None
        self.check_text("prompt", len(prompt))
        ids = self.tokenizer.encode(prompt)
        return self._check_ids(ids) if ids else [self._start_token()]

    def check_text(self, field: str, characters: int) -> None:
        """Raises Error where a text is so long that it cannot fit the context however it is split
        into tokens; to split it would take a while.
        """
        context, longest = self._config.context_length, self.tokenizer.longest
        if characters > context * longest:
            raise Error(
                f"{field}: expected at most {context * longest} characters, found {characters}: "
                f"the {field} is too long, this model's maximum context length is {context} "
                f"tokens of up to {longest} bytes, prompt and output together",
                field=field,
                code="context_length_exceeded",
            )

    def _start_token(self) -> int:
        special = self.tokenizer.special_tokens
        for name in ("<|startoftext|>", "<|endoftext|>"):
            if name in special:
                return special[name]
        raise Error(
            "prompt: it is empty, and the model has no token that begins a text", field="prompt"
        )

    def _check_ids(self, ids: Any, field: str = "prompt") -> list[int]:
        return checked_ids(ids, self._config.vocab_size, field)

    def _tokenizer_or_none(self, params: SamplingParams) -> Tokenizer | None:
        """Token ids can be continued without a vocabulary; the text then stays empty."""
        try:
            return self.tokenizer
        except Error:
            if params.stop_strings:
                raise
            return None
