"""From options to all that an engine is made of: device, files, weights, cache, queue."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptoss.checkpoint import PanelSource, TensorSource, open_checkpoint
from gptoss.engine.memory import available_memory, default_kv_bytes, device_kv_bytes
from gptoss.engine.options import EngineOptions
from gptoss.engine.pages import peak_pages
from gptoss.engine.scheduler import Scheduler
from gptoss.errors import Error
from gptoss.hub import find
from gptoss.native import _core
from gptoss.tokenizer import Tokenizer, load_tokenizer

Progress = Callable[[int, int], None]  # (bytes read, bytes in all)


@dataclass(frozen=True)
class Model:
    """Open files and the backend that computes with them, on the device of this name."""

    source: TensorSource
    backend: _core.Backend
    device: str

    def close(self) -> None:
        """Free both; harmless when repeated."""
        self.backend.close()  # it may still read the source's arrays
        self.source.close()


@dataclass(frozen=True)
class Loaded:
    """What `Engine.over` takes. load_tokenizer: called once, when text is first at hand.

    overlap: plan a step while the one before it runs. speculation: draft tokens.
    """

    model: Model
    scheduler: Scheduler
    load_tokenizer: Callable[[], Tokenizer]
    overlap: bool
    speculation: bool


def load(options: EngineOptions, progress: Progress | None = None) -> Loaded:
    """Open a model and give it a cache and a queue. Nothing stays open when it fails.

    progress: called while files are checked and weights are loaded.

    Raises:
        Error: the checkpoint is damaged, the device is not here, the memory too small.
    """
    device = choose_device(options.device, _core.backends())
    _check_threads(options.threads, _core.cpu_features()["threads"])
    options.step_limits(device)  # refused before minutes of loading rather than after
    return prepare(open_model(options, device, progress), options)


def choose_device(device: str, backends: Iterable[dict[str, Any]]) -> str:
    """The device that is asked for, or the first available one for "auto".

    backends: name, available, reason of each, the preferred first.
    """
    known = {backend["name"]: backend for backend in backends}
    if device == "auto":
        return next(name for name, backend in known.items() if backend["available"])
    if device not in known:
        raise Error(
            f"device: expected 'auto' or one of {sorted(known)}, found {device!r}", field="device"
        )
    if not known[device]["available"]:
        raise Error(
            f"device: {device!r} is not available: {known[device]['reason']}", field="device"
        )
    return device


def open_model(options: EngineOptions, device: str, progress: Progress | None = None) -> Model:
    """Open the files and load the weights; no cache yet."""
    found = find(options.model, weights=options.weights, packed_too=device == "cpu")
    source = open_checkpoint(found.model)
    try:
        if isinstance(source, PanelSource):
            _check_packed(source, options, device)
            source.verify(options.threads or _core.cpu_features()["threads"], progress)
        backend = _core.Backend(
            source.config,
            source,
            device=device,
            activation=options.activation,
            threads=options.threads or 0,
            weights=options.weights or source.panels or "published",
            kv=options.kv,
            tensor_parallel=options.tensor_parallel,
            progress=progress,
        )
    except BaseException:
        source.close()
        raise
    return Model(source, backend, device)


def prepare(model: Model, options: EngineOptions) -> Loaded:
    """Give an open model its cache and its queue; closes it when that fails."""
    source, backend = model.source, model.backend
    try:
        step_tokens, max_batch = options.step_limits(model.device)
        pages = _allocate(model, options.kv_bytes, step_tokens)
        scheduler = Scheduler(
            pages,
            backend.page_size,
            source.config.sliding_window,
            step_tokens,
            max_batch,
            prefix_cache=options.prefix_cache,
        )
    except BaseException:
        model.close()
        raise
    return Loaded(
        model,
        scheduler,
        partial(load_tokenizer, source.directory, source.config),
        overlap=options.overlaps(model.device),
        speculation=options.speculation,
    )


def _check_threads(threads: int | None, cores: int) -> None:
    """More threads than cores only wait for each other; a few more are of use to try them."""
    most = max(64, 4 * cores)
    if threads is not None and threads > most:
        raise Error(
            f"threads: expected at most {most} on this machine of {cores} cores, found {threads}",
            field="threads",
        )


def _check_packed(source: PanelSource, options: EngineOptions, device: str) -> None:
    if device != "cpu":
        raise Error(
            f"{source.name}: is packed for the CPU: expected device 'cpu', found {device!r}",
            field="device",
        )
    if options.weights not in (None, source.panels):
        raise Error(
            f"{source.name}: is packed with weights {source.panels!r}, "
            f"asked for {options.weights!r}: convert the checkpoint again",
            field="weights",
        )


def _allocate(model: Model, kv_bytes: int | None, step_tokens: int) -> int:
    """Allocate the cache, which must hold one token at least: its pages."""
    config, backend = model.source.config, model.backend
    pages_for = partial(
        peak_pages, chunk=step_tokens, window=config.sliding_window, page_size=backend.page_size
    )
    if kv_bytes is None:
        sizes = pages_for, backend.page_bytes, config.context_length
        free = backend.free_bytes
        if free is None:
            kv_bytes = default_kv_bytes(*sizes, available_memory())
        else:
            kv_bytes = device_kv_bytes(*sizes, free)
    pages, least = backend.plan_kv(kv_bytes), pages_for(1)
    if pages < least:
        raise Error(
            f"kv_bytes: expected at least {least * backend.page_bytes} "
            f"({least} pages of {backend.page_bytes} bytes), found {kv_bytes}",
            field="kv_bytes",
        )
    try:
        backend.alloc_kv(pages)
    except Error as error:
        raise Error(
            f"kv_bytes: expected what the memory holds, found {kv_bytes}: {error}",
            field="kv_bytes",
        ) from None
    return pages
