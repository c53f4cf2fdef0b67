"""The engine: a model, a page pool and a worker thread behind a few plain calls."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from functools import partial
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.checkpoint import BUNDLED_MODEL, TensorSource, open_checkpoint
from gptoss.engine.constraint import CompiledGrammar, GrammarVocabulary
from gptoss.engine.drafts import Drafter
from gptoss.engine.generation import Generation
from gptoss.engine.load import (
    MAX_BATCH,
    MAX_VALUES,
    STEP_TOKENS,
    ReportingSource,
    check_integer,
    check_optional_integer,
    check_panels,
    choose_device,
    free_model,
)
from gptoss.engine.memory import available_memory, default_kv_bytes, device_kv_bytes
from gptoss.engine.pages import peak_pages
from gptoss.engine.prompts import Prompt, as_params, as_prompts
from gptoss.engine.request import Outbox, Outlet, Request, Scoring
from gptoss.engine.scheduler import Scheduler
from gptoss.engine.sequence import Account
from gptoss.engine.stream import Stream, Submission
from gptoss.engine.text import TextStream
from gptoss.engine.worker import Worker
from gptoss.errors import Error
from gptoss.model import ModelConfig
from gptoss.native import _core
from gptoss.request import SEED_LIMIT, Completion, Delta, Grammar, SamplingParams, derive_seed, join
from gptoss.tokenizer import Tokenizer, load_tokenizer

LOGITS_BYTES = 64 << 20  # whole rows of logits that one step may return


class Engine:
    """A gpt-oss model that generates text.

    Args:
        model: a checkpoint directory or file, or "synthetic:…"; None: the bundled nano model.
        device: "cpu", "cuda", or "auto" (the fastest that is available).
        activation: "bf16", or "f32" for exact comparison: operands of products stay float32.
        kv_bytes: memory for the key/value cache; None: enough for 16 sequences of full context,
            but no more than a quarter of the free memory; on a GPU for 64, but no more than 85%.
        threads: threads of the CPU backend; None: one per core.
        weights: "published" (bf16, exact), or "q8" (int8 in groups of 32) for attention and the
            unembedding; None: as a packed model has them, otherwise "published".
        kv: keys and values as "bf16", or "int8" with a scale per token and head.
        tensor_parallel: GPUs of this machine that hold a part of the model each: 1 to 8, a divisor
            of its KV heads and experts. (On the CPU: groups of threads, which is of no use but to
            try it.)
        max_batch: most sequences in one step; None: 64 on a CPU, 256 on a GPU.
        step_tokens: most tokens in one step; long prompts enter in chunks of at most this size.
            None: 512 on a CPU, 4096 on a GPU.
        prefix_cache: begin behind what was computed before of the same text, for whichever request.
        speculation: guess tokens from what stands in the text, where that pays; the same texts come
            of it (see `gptoss.engine.drafts`).
        overlap: plan a step while the one before it runs; None: on a GPU. (On a CPU planning takes
            the cores that compute.)
        progress: called with (bytes read, bytes in all) while the weights are loaded.

    All calls may be made from any thread, and any number of streams may be open at once; they
    share every step. An engine is closed by `close()`, by leaving a `with` block, or when the
    last reference to it goes.

    An engine belongs to the process that made it. In a forked child its calls raise Error; the
    child makes one of its own, or is started by multiprocessing's "spawn", which is the only way
    where the parent has used a GPU.

    Raises:
        Error: the checkpoint is damaged, the device unknown, an option out of range.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        device: str = "auto",
        activation: str = "bf16",
        kv_bytes: int | None = None,
        threads: int | None = None,
        *,
        max_batch: int | None = None,
        step_tokens: int | None = None,
        weights: str | None = None,
        kv: str = "bf16",
        tensor_parallel: int = 1,
        prefix_cache: bool = True,
        speculation: bool = True,
        overlap: bool | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        kv_bytes = check_optional_integer("kv_bytes", kv_bytes)
        threads = check_optional_integer("threads", threads)
        max_batch = check_optional_integer("max_batch", max_batch)
        step_tokens = check_optional_integer("step_tokens", step_tokens)
        tensor_parallel = check_integer("tensor_parallel", tensor_parallel)
        if activation not in ("bf16", "f32"):
            raise Error(
                f"activation: expected 'bf16' or 'f32', found {activation!r}", field="activation"
            )
        if weights not in (None, "published", "q8"):
            raise Error(
                f"weights: expected 'published' or 'q8', found {weights!r}", field="weights"
            )
        if kv not in ("bf16", "int8"):
            raise Error(f"kv: expected 'bf16' or 'int8', found {kv!r}", field="kv")

        device = choose_device(device, _core.backends())
        if step_tokens is None:
            step_tokens = STEP_TOKENS[device]
        if max_batch is None:
            max_batch = min(MAX_BATCH[device], step_tokens)
        self._source: TensorSource = open_checkpoint(BUNDLED_MODEL if model is None else model)
        self._tokenizer: Tokenizer | None = None
        self._no_tokenizer: Error | None = None  # why there is none
        self._grammars: GrammarVocabulary | None = None  # made when a grammar is first asked for
        self._grammars_lock = threading.Lock()
        backend = None
        try:
            self._config = config = self._source.config
            check_panels(self._source, weights, device, threads, progress)
            backend = _core.Backend(
                config,
                ReportingSource(self._source, progress) if progress else self._source,
                device=device,
                activation=activation,
                threads=threads or 0,
                weights=weights or self._source.packed or "published",
                kv=kv,
                tensor_parallel=tensor_parallel,
            )

            def pages_for(length: int) -> int:
                return peak_pages(length, step_tokens, config.sliding_window, backend.page_size)

            if kv_bytes is None:
                sizes = pages_for, backend.page_bytes, config.context_length
                free = backend.free_bytes
                if free is None:
                    kv_bytes = default_kv_bytes(*sizes, available_memory())
                else:
                    kv_bytes = device_kv_bytes(*sizes, free)
            pages = backend.plan_kv(kv_bytes)
            if pages < pages_for(1):
                raise Error(
                    f"kv_bytes: expected at least {pages_for(1) * backend.page_bytes} "
                    f"({pages_for(1)} pages of {backend.page_bytes} bytes), found {kv_bytes}",
                    field="kv_bytes",
                )
            try:
                backend.alloc_kv(pages)
            except Error as error:
                raise Error(
                    f"kv_bytes: expected what the memory holds, found {kv_bytes}: {error}"
                ) from None
            scheduler = Scheduler(
                pages,
                backend.page_size,
                config.sliding_window,
                step_tokens,
                max_batch,
                prefix_cache=prefix_cache,
            )
        except BaseException:
            if backend is not None:
                backend.close()
            self._source.close()
            raise
        self._backend = backend
        self._worker = Worker(
            backend,
            scheduler,
            at_end=partial(free_model, backend, self._source),
            overlap_from=1 if (device == "cuda" if overlap is None else overlap) else None,
        )
        self._speculates = speculation
        self._worker.start()
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
                self._tokenizer = load_tokenizer(self._source.directory, self._config)
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
        requests: list[Generation] = []
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
            float32 [len(token_ids), vocab_size]; row i is the model's guess at token i + 1.
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
        scoring = Scoring(ids, outbox, max_chunk=max(1, LOGITS_BYTES // (4 * vocabulary)))
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
    ) -> list[Generation]:
        """Check a prompt and its parameters, and make of them the requests to submit.

        Args:
            prompt: text, or token ids. outbox: where what they produce is to go, as
                ((prompt_index, choice), list of `Delta`, or an exception as the last item).
            priority: lower goes first.
            client: whom it is for; clients share the engine alike, and so do a client's requests.
            account: shared by what is to count as one request; None: these are one.

        Returns:
            One for each of the n choices.

        Raises:
            Error: the prompt or the parameters do not suit the model.
        """
        params = SamplingParams() if params is None else params
        self._worker.check_process()
        if not isinstance(params, SamplingParams):
            raise Error(
                f"params: expected SamplingParams, found {type(params).__name__}", field="params"
            )
        priority = check_integer("priority", priority, -MAX_VALUES["priority"])
        ids = self._prompt_ids(prompt)
        self._check_params(params)
        tokenizer = self._tokenizer_or_none(params)
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= set(self._config.eos_token_ids)
            stop_ids |= tokenizer.eos_ids if tokenizer else frozenset()
        seed = secrets.randbelow(SEED_LIMIT) if params.seed is None else params.seed
        cost = self._worker.cost
        grammar = self._compile(params.grammar) if params.grammar else None
        max_tokens = self._max_tokens(len(ids), params.max_tokens)
        account = account or Account()
        return [
            Generation(
                ids,
                params,
                seed=derive_seed(seed, index),
                max_tokens=max_tokens,
                stop_ids=stop_ids,
                text=TextStream(tokenizer.stream(), params.stop_strings) if tokenizer else None,
                token_bytes=tokenizer.token_bytes if tokenizer else lambda token: b"",
                outbox=outbox,
                key=(prompt_index, index),
                index=index,
                constraint=grammar.begin() if grammar else None,
                drafter=Drafter(ids, cost) if self._speculates else None,
                priority=priority,
                client=client,
                account=account,
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

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """A grammar for this model's vocabulary."""
        with self._grammars_lock:
            if self._grammars is None:
                eos = self.tokenizer.eos_ids | set(self._config.eos_token_ids)
                self._grammars = GrammarVocabulary(self.tokenizer, self._config.vocab_size, eos)
            return self._grammars.compile(grammar)

    def _max_tokens(self, prompt: int, max_tokens: int | None) -> int:
        """Most tokens that a request may draw: what it asks for, and what there is room for."""
        context = self._config.context_length
        if prompt >= context:
            raise Error(
                f"prompt: expected at most {context - 1} tokens (the model's context of {context} "
                f"holds prompt and output), found {prompt}",
                field="prompt",
            )
        if max_tokens is None:
            # Not the caller's number: make do with the cache there is.
            spare = self._worker.scheduler.capacity() + 1 - prompt
            return min(context - prompt, max(1, spare))
        return min(context - prompt, max_tokens)

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
        ids = self.tokenizer.encode(prompt)
        return self._check_ids(ids) if ids else [self._start_token()]

    def _start_token(self) -> int:
        special = self.tokenizer.special_tokens
        for name in ("<|startoftext|>", "<|endoftext|>"):
            if name in special:
                return special[name]
        raise Error(
            "prompt: it is empty, and the model has no token that begins a text", field="prompt"
        )

    def _check_ids(self, ids: Any, field: str = "prompt") -> list[int]:
        if isinstance(ids, np.ndarray):
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
                raise Error(
                    f"token ids: expected a list of integers or an integer array of one "
                    f"dimension, found {ids.dtype} {list(ids.shape)}",
                    field=field,
                )
            ids = ids.tolist()
        if isinstance(ids, (str, bytes)) or not isinstance(ids, SequenceOf):
            raise Error(
                f"prompt: expected text or token ids, found {type(ids).__name__}", field=field
            )
        if not ids:
            raise Error("token ids: expected at least one, found none", field=field)
        top = self._config.vocab_size - 1
        for position, token in enumerate(ids):
            # bool is an int to Python, but not a token to anyone.
            if (
                isinstance(token, bool)
                or not isinstance(token, Integral)
                or not 0 <= int(token) <= top
            ):
                raise Error(
                    f"token ids: expected integers from 0 to {top}, found {token!r} "
                    f"({type(token).__name__}) at position {position}",
                    field=field,
                )
        return [int(token) for token in ids]

    def _check_params(self, params: SamplingParams) -> None:
        vocabulary = self._config.vocab_size
        for option, ids in (
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias or ()),
        ):
            for token in ids:
                if token >= vocabulary:
                    raise Error(
                        f"{option}: expected token ids from 0 to {vocabulary - 1}, found {token}",
                        field=option,
                    )
        if (params.logprobs or 0) > vocabulary:
            raise Error(
                f"logprobs: expected at most {vocabulary}, found {params.logprobs}",
                field="logprobs",
            )

    def _tokenizer_or_none(self, params: SamplingParams) -> Tokenizer | None:
        """Token ids can be continued without a vocabulary; the text then stays empty."""
        try:
            return self.tokenizer
        except Error:
            if params.stop_strings:
                raise
            return None
