"""The engine: a model, a page pool and a worker thread behind a few plain calls."""

from __future__ import annotations

import secrets
import threading
import weakref
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from functools import partial
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptoss.completion import Completion, Delta, join
from gptoss.errors import Error
from gptoss.grammar import GrammarVocabulary
from gptoss.jobs import Generation, Outbox, Outlet, Scoring
from gptoss.kv_cache import peak_pages
from gptoss.memory import available_memory, default_kv_bytes, device_kv_bytes
from gptoss.sampling import SEED_LIMIT, SamplingParams, derive_seed
from gptoss.scheduler import Scheduler
from gptoss.speculation import Drafter
from gptoss.stream import Stream, Submitted
from gptoss.textstream import TextStream
from gptoss.worker import Worker

if TYPE_CHECKING:
    from gptoss.checkpoint import TensorSource
    from gptoss.config import ModelConfig
    from gptoss.grammar import CompiledGrammar, Grammar
    from gptoss.tokenizer import Tokenizer

BUNDLED_MODEL = Path(__file__).parent / "models" / "nano"
LOGITS_BYTES = 64 << 20  # whole rows of logits that one step may return

Prompt = str | SequenceOf[int] | NDArray[np.integer[Any]]


# What a step holds at most, by default: enough to keep the device's arithmetic busy.
STEP_TOKENS = {"cpu": 512, "cuda": 4096}
MAX_BATCH = {"cpu": 64, "cuda": 256}


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
            of it (see `gptoss.speculation`).
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
        _check_integer("kv_bytes", kv_bytes, 1)
        _check_integer("threads", threads, 1)
        _check_integer("max_batch", max_batch, 1)
        _check_integer("step_tokens", step_tokens, 1)
        _check_integer("tensor_parallel", tensor_parallel, 1)
        if activation not in ("bf16", "f32"):
            raise Error(f"activation: expected 'bf16' or 'f32', found {activation!r}")
        if weights not in (None, "published", "q8"):
            raise Error(f"weights: expected 'published' or 'q8', found {weights!r}")
        if kv not in ("bf16", "int8"):
            raise Error(f"kv: expected 'bf16' or 'int8', found {kv!r}")
        from gptoss import _core
        from gptoss.checkpoint import open_checkpoint

        device = _choose_device(device, _core.backends())
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
            _check_packed(self._source, weights, device, threads, progress)
            backend = _core.Backend(
                config,
                _Reporting(self._source, progress) if progress else self._source,
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
                    f"({pages_for(1)} pages of {backend.page_bytes} bytes), found {kv_bytes}"
                )
            backend.alloc_kv(pages)
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
            _core.SamplingBatch,
            _core.SAMPLING_DTYPE,
            at_end=partial(_free, backend, self._source),
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
            from gptoss.tokenizer import load_tokenizer

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
        return Stream(
            self,
            self._worker,
            self._generations(prompt, params or SamplingParams(), Outbox(), priority=priority),
        )

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
        batch = _as_prompts(prompts)
        outbox = Outbox()
        jobs: list[Generation] = []
        for index, (prompt, own) in enumerate(
            zip(batch, _as_params(params, len(batch)), strict=True)
        ):
            try:
                jobs += self._generations(prompt, own, outbox, prompt_index=index)
            except Error as error:
                if len(batch) == 1:
                    raise
                raise Error(f"prompt {index} of {len(batch)}: {error}") from None
        for job in jobs:
            job.demand = job.limit + 1  # more than it can produce: run to the end
            job.eager = False
        with Submitted(self._worker, jobs):
            deltas: dict[tuple[int, int], list[Delta]] = {}
            while len(deltas) < len(jobs):
                key, items = outbox.get()
                if isinstance(items[-1], BaseException):
                    raise items[-1]
                deltas[key] = items
        return [join(deltas[job.key], prompt_index=job.key[0]) for job in jobs]

    def logits(self, token_ids: SequenceOf[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Logits after every token of a given text ("teacher-forced").

        Args:
            token_ids: 1 to context_length ids.

        Returns:
            float32 [len(token_ids), vocab_size]; row i is the model's guess at token i + 1.
        """
        ids = self._check_ids(token_ids)
        if len(ids) > self._config.context_length:
            raise Error(
                f"token_ids: expected at most {self._config.context_length} (the model's "
                f"context), found {len(ids)}"
            )
        vocabulary = self._config.vocab_size
        outbox = Outbox()
        job = Scoring(ids, outbox, chunk=max(1, LOGITS_BYTES // (4 * vocabulary)))
        result = np.empty((len(ids), vocabulary), np.float32)
        done = 0
        with Submitted(self._worker, [job]):
            while done < len(ids):
                _, items = outbox.get()
                for item in items:
                    if isinstance(item, BaseException):
                        raise item
                    first, rows = item
                    result[first : first + len(rows)] = rows
                    done = first + len(rows)
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

    # From what the caller wrote to jobs.

    def _generations(
        self,
        prompt: Prompt,
        params: SamplingParams,
        outbox: Outlet,
        prompt_index: int = 0,
        *,
        priority: int = 0,
        client: str = "",
    ) -> list[Generation]:
        self._worker.check_process()
        if not isinstance(params, SamplingParams):
            raise Error(f"params: expected SamplingParams, found {type(params).__name__}")
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
        return [
            Generation(
                ids,
                params,
                seed=derive_seed(seed, index),
                most=self._most_tokens(len(ids), params.max_tokens),
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
            )
            for index in range(params.n)
        ]

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        """A grammar for this model's vocabulary."""
        with self._grammars_lock:
            if self._grammars is None:
                eos = self.tokenizer.eos_ids | set(self._config.eos_token_ids)
                self._grammars = GrammarVocabulary(self.tokenizer, self._config.vocab_size, eos)
            return self._grammars.compile(grammar)

    def _most_tokens(self, prompt: int, max_tokens: int | None) -> int:
        """How many tokens a request may draw: what it asks for, and what there is room for."""
        context = self._config.context_length
        if prompt >= context:
            raise Error(
                f"prompt: expected at most {context - 1} tokens (the model's context of {context} "
                f"holds prompt and output), found {prompt}"
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
                f"prompt: expected text, found a lone surrogate at index {error.start}"
            ) from None
        ids = self.tokenizer.encode(prompt)
        return self._check_ids(ids) if ids else [self._start_token()]

    def _start_token(self) -> int:
        special = self.tokenizer.special_tokens
        for name in ("<|startoftext|>", "<|endoftext|>"):
            if name in special:
                return special[name]
        raise Error("prompt: it is empty, and the model has no token that begins a text")

    def _check_ids(self, ids: Any) -> list[int]:
        if isinstance(ids, np.ndarray):
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
                raise Error(
                    f"token ids: expected a list of integers or an integer array of one "
                    f"dimension, found {ids.dtype} {list(ids.shape)}"
                )
            ids = ids.tolist()
        if isinstance(ids, (str, bytes)) or not isinstance(ids, SequenceOf):
            raise Error(f"prompt: expected text or token ids, found {type(ids).__name__}")
        if not ids:
            raise Error("token ids: expected at least one, found none")
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
                    f"({type(token).__name__}) at position {position}"
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
                        f"{option}: expected token ids from 0 to {vocabulary - 1}, found {token}"
                    )
        if (params.logprobs or 0) > vocabulary:
            raise Error(f"logprobs: expected at most {vocabulary}, found {params.logprobs}")

    def _tokenizer_or_none(self, params: SamplingParams) -> Tokenizer | None:
        """Token ids can be continued without a vocabulary; the text then stays empty."""
        try:
            return self.tokenizer
        except Error:
            if params.stop_strings:
                raise
            return None


class _Reporting:
    """A tensor source that tells how far its reader is."""

    def __init__(self, source: TensorSource, progress: Callable[[int, int], None]) -> None:
        self._source = source
        self._progress = progress
        self._read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def tensor(self, name: str) -> NDArray[Any]:
        array = self._source.tensor(name)
        self._read += array.nbytes
        self._progress(self._read, self._source.nbytes)
        return array


def _check_packed(
    source: TensorSource,
    weights: str | None,
    device: str,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Raise Error unless a packed model is whole and what was asked for."""
    from gptoss.packed import PackedSource

    if not isinstance(source, PackedSource):
        return
    if device != "cpu":
        raise Error(
            f"{source.name}: is packed for the CPU: expected device 'cpu', found {device!r}"
        )
    if weights not in (None, source.packed):
        raise Error(
            f"{source.name}: is packed with weights {source.packed!r}, asked for {weights!r}: "
            f"convert the checkpoint again"
        )
    from gptoss import _core

    source.verify(threads or _core.cpu_features()["threads"], progress)


def _free(backend: Any, source: TensorSource) -> None:
    backend.close()  # it may still read the source's arrays
    source.close()


def _choose_device(device: str, backends: Iterable[dict[str, Any]]) -> str:
    known = {backend["name"]: backend for backend in backends}
    if device == "auto":
        return "cuda" if known.get("cuda", {}).get("available") else "cpu"
    if not isinstance(device, str) or device not in known:
        raise Error(f"device: expected 'auto' or one of {sorted(known)}, found {device!r}")
    if not known[device]["available"]:
        raise Error(f"device: {device!r} is not available: {known[device]['reason']}")
    return device


def _check_integer(option: str, value: object, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise Error(f"{option}: expected an integer of at least {low}, found {value!r}")


def _as_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many: a text, and a sequence that begins with a number, are one."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        return [prompts] if prompts.ndim == 1 else list(prompts)
    if isinstance(prompts, bytes) or not isinstance(prompts, SequenceOf):
        raise Error(
            f"prompts: expected text, token ids, or a sequence of these, "
            f"found {type(prompts).__name__}"
        )
    if len(prompts) and isinstance(prompts[0], Integral):
        return [prompts]
    return list(prompts)


def _as_params(params: Any, count: int) -> list[SamplingParams]:
    if params is None:
        params = SamplingParams()
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, SequenceOf) or len(params) != count:
        found = len(params) if isinstance(params, SequenceOf) else type(params).__name__
        raise Error(
            f"params: expected one SamplingParams, or one per prompt ({count}), found {found}"
        )
    return list(params)
