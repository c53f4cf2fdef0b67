"""What the checks of one model share: its open files, its vocabulary, and one engine at a time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.checkpoint import PRESETS, TensorSource, open_checkpoint
from gptoss.engine import Engine, EngineOptions, available_memory, choose_device
from gptoss.errors import Error
from gptoss.eval.outcome import Skipped
from gptoss.model import REQUIRED, ModelConfig
from gptoss.native import _core
from gptoss.tokenizer import Tokenizer, load_tokenizer

PUBLISHED = ("gpt-oss-20b", "gpt-oss-120b")
# Fields that say which tensors there are: a model that has all of them in common with a published
# one is that model, or made from it.
SHAPE_FIELDS = tuple(name for name in REQUIRED if name != "sliding_window")


class Session:
    """A model under examination.

    Args:
        options: as the user wants it run; `options.model` says which.
        say: takes lines that tell how far it is.
        progress: takes (bytes done, bytes in all) of long reading.

    Raises:
        Error: the device is not here.

    Attributes:
        warnings: what opening the files warned of.
    """

    def __init__(
        self,
        options: EngineOptions,
        say: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        # What is measured is the model, not what is guessed of its text.
        device = choose_device(options.device, _core.backends())
        self.options = replace(options, speculation=False, device=device)
        self.say = say
        self.progress = progress
        self.warnings: list[str] = []
        self._source: TensorSource | None = None
        self._no_source = False
        self._tokenizer: Tokenizer | None = None
        self._no_tokenizer = False
        self._engine: Engine | None = None
        self._opened: EngineOptions | None = None
        self._no_engine: set[str] = set()

    def close(self) -> None:
        """Let go of the engine and the files; harmless when repeated."""
        self.close_engine()
        if self._source is not None:
            self._source.close()
            self._source = None

    # The files.

    def open(self) -> TensorSource:
        """Open the files. Raises Error; asking for them later is then Skipped."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._source = open_checkpoint(str(self.options.model))
        except BaseException:
            self._no_source = True
            raise
        self.warnings += [" ".join(str(each.message).split()) for each in caught]
        return self._source

    @property
    def opened(self) -> bool:
        """Whether the files are open."""
        return self._source is not None

    @property
    def source(self) -> TensorSource:
        """The open files. Raises Skipped where they could not be opened."""
        if self._source is None:
            if self._no_source:
                raise Skipped("the model's files did not open")
            return self.open()
        return self._source

    @property
    def config(self) -> ModelConfig:
        return self.source.config

    @property
    def synthetic(self) -> bool:
        """Whether the weights are random ones that are made up, of which no sense is expected."""
        return self.source.layout == "synthetic"

    @property
    def preset(self) -> str | None:
        """The published model that has the same tensors, by its name."""
        for name in PUBLISHED:
            same = PRESETS[name]
            if all(getattr(self.config, key) == getattr(same, key) for key in SHAPE_FIELDS):
                return name
        return None

    @property
    def published(self) -> bool:
        """Whether these are published weights, by all that their shape tells, or made from such."""
        return self.preset is not None and not self.synthetic

    # The vocabulary.

    def load_tokenizer(self) -> Tokenizer:
        """Read it. Raises Error; asking for it later is then Skipped."""
        try:
            self._tokenizer = load_tokenizer(self.source.directory, self.config)
        except Error:
            self._no_tokenizer = True
            raise
        return self._tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary. Raises Skipped where there is none."""
        if self._tokenizer is None:
            if self._no_tokenizer:
                raise Skipped("there is no tokenizer")
            try:
                return self.load_tokenizer()
            except Error:
                raise Skipped("there is no tokenizer") from None
        return self._tokenizer

    def tokens(self, text: str, count: int) -> NDArray[np.int32]:
        """int32 [n], n up to `count`: those of a text, or random ones where there is no tokenizer.

        There is at least one.
        """
        try:
            ids = self.tokenizer.encode(text)[:count]
        except Skipped:
            return random_tokens(self.config, count, seed=1)
        return np.array(ids, np.int32)

    # Engines. Never two at a time: the memory may hold the model once.

    @property
    def threads(self) -> int:
        """Those of the CPU backend."""
        return self.options.threads or int(_core.cpu_features()["threads"])

    def is_open(self, **changes: Any) -> bool:
        """Whether `engine` would give what is open."""
        return self._engine is not None and replace(self.options, **changes) == self._opened

    def engine(self, **changes: Any) -> Engine:
        """The model as the user wants it run, or with other options; another one is closed first.

        Raises:
            Skipped: it did not load before with the same options.
            Error: it does not load.
        """
        wanted = replace(self.options, **changes)
        if self._engine is not None and self.is_open(**changes):
            return self._engine
        key = json.dumps(changes, sort_keys=True, default=str)
        if key in self._no_engine:
            raise Skipped("the model did not load")
        self.source  # noqa: B018  Skipped where there are no files
        self.close_engine()
        try:
            self._check_memory(wanted)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when the files were opened
                self._engine = Engine.from_options(wanted, self.progress)
        except (Error, OSError, MemoryError):
            self._no_engine.add(key)
            raise
        self._opened = wanted
        return self._engine

    def close_engine(self) -> None:
        """Free the model's memory."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._opened = None

    def _check_memory(self, options: EngineOptions) -> None:
        """Better said than found out by the system, which ends whoever takes too much."""
        known = Path("/proc/meminfo").exists()  # elsewhere `available_memory` is a guess
        needed, free = self.source.nbytes, available_memory()
        if (
            known
            and options.device == "cpu"
            and self.source.panels is None
            and free < needed * 0.95
        ):
            raise Error(
                f"memory: expected {needed / 1e9:.1f} GB free for the weights, found "
                f"{free / 1e9:.1f} GB; end other programs, or convert the model once "
                f"(gptoss convert --layout packed), which is then read from its file as needed"
            )


def random_tokens(config: ModelConfig, count: int, seed: int) -> NDArray[np.int32]:
    """int32 [count] out of the first 199,000 ids: those above are special in published models."""
    size = min(config.vocab_size, 199_000)
    return np.random.default_rng(seed).integers(0, size, count, np.int32)
