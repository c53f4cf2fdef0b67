"""Models in the CPU engine's own layout: written once, then mapped and run without any repacking.

Such a model (layout "packed") is a directory with config.json, the tokenizer's files and one
model.safetensors whose metadata say {"format": "gptoss-packed", "version": …, "weights":
"published" or "q8", "experts": "mxfp4" or "bf16", "checksums": …}. Matrices are stored as the
panels of core/cpu/panels.h, `X.panels` in place of `X.weight`, and start at multiples of 64 bytes.
Everything else is as in the original layout. Checksums are xxh3 (Collet), 64 bits per tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gptoss import files
from gptoss.checkpoint.safetensors import SafetensorsFile, encode_header
from gptoss.checkpoint.source import Array, TensorInfo, TensorSource, listed, seam_tensors
from gptoss.checkpoint.write import copy_tokenizer, new_directory, write_json
from gptoss.errors import Error, shown
from gptoss.model import ModelConfig, to_original
from gptoss.native import _core

FORMAT = "gptoss-packed"
VERSION = "1"  # of the panels' layout: a file of another version is refused
WEIGHTS = ("published", "q8")
FILE = "model.safetensors"
_WRITE_BYTES = 1 << 24
_NO_CHECKSUM = "0" * 16
_MAX_THREADS = 4096  # as the core has it
_MATRICES = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate")

Progress = Callable[[int, int], None]


def panel_tensors(
    config: ModelConfig, expert_dtype: str, weights: str
) -> dict[str, tuple[TensorInfo, str | None]]:
    """Every tensor of a model in panels, panels first, with their format, None for the others.

    Panels first: their sizes are multiples of 64 bytes, so each begins at one.
    """
    dense = "q8" if weights == "q8" else "bf16"
    panels: dict[str, tuple[TensorInfo, str | None]] = {}
    others: dict[str, tuple[TensorInfo, str | None]] = {}

    def add(name: str, shape: tuple[int, ...], format_: str) -> None:
        name += ".panels"
        *experts, rows, cols = shape
        found = (*experts, *_core.panel_shape(format_, rows, cols))
        panels[name] = TensorInfo(name, "U8", found), format_

    for name, info in seam_tensors(config, expert_dtype).items():
        stem = name.removesuffix(".weight")
        if name == "unembedding.weight" or (
            name.endswith(".weight") and stem.split(".", 2)[-1] in _MATRICES
        ):
            add(stem, info.shape, "bf16" if stem.endswith("gate") else dense)
        elif name.endswith("_weight.blocks"):
            experts, rows, blocks, _ = info.shape
            add(name.removesuffix(".blocks"), (experts, rows, blocks * 32), "mxfp4")
        elif name.endswith("_weight.scales"):
            continue
        elif name.endswith("_weight"):
            add(name, info.shape, "bf16")
        else:
            others[name] = info, None
    return {**panels, **others}


class PanelSource(TensorSource):
    """Tensors of a mapped model in panels. `weights`: how its dense matrices are stored."""

    def __init__(
        self, config: ModelConfig, file: SafetensorsFile, weights: str, expert_dtype: str, name: str
    ) -> None:
        super().__init__(
            config,
            name=name,
            layout="packed",
            expert_dtype=expert_dtype,
            files=[file.path],
            directory=file.path.parent,
        )
        self.panels = weights
        self._file = file
        self._infos = {
            info.name: info for info, _ in panel_tensors(config, expert_dtype, weights).values()
        }
        self._checksums = _read_checksums(file, self._infos)

    def info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise Error(
                f"{self.name}: no tensor is called {shown(name)}: a packed model holds panels for "
                f"the CPU engine; use the checkpoint that it was made from"
            )
        return self._infos[name]

    def _read(self, info: TensorInfo) -> Array:
        return self._file.view(info.name)

    def expert(self, name: str, index: int) -> Any:
        raise Error(
            f"{self.name}: {name}: a packed model's experts cannot be unpacked; use the checkpoint "
            f"that it was made from"
        )

    def verify(self, threads: int, progress: Progress | None = None) -> None:
        """Raise Error unless every tensor's bytes are what was written.

        Reads the whole file at the speed of memory or of the disk, which also brings its pages in.
        """
        from xxhash import xxh3_64_hexdigest

        done = 0

        def digest(info: TensorInfo) -> tuple[TensorInfo, str]:
            return info, xxh3_64_hexdigest(self._read(info).reshape(-1).view(np.uint8).data)

        largest_first = sorted(self._infos.values(), key=lambda info: -info.nbytes)
        with ThreadPoolExecutor(max(1, threads)) as pool:  # xxhash lets go of the GIL
            for info, found in pool.map(digest, largest_first):
                expected = self._checksums[info.name]
                if found != expected:
                    raise Error(
                        f"{self._file.path}: tensor {info.name}: corrupt: expected checksum "
                        f"{expected}, found {found}"
                    )
                done += info.nbytes
                if progress is not None:
                    progress(done, self.nbytes)

    def close(self) -> None:
        self._file.close()


def holds_panels(file: SafetensorsFile) -> bool:
    """Whether this file's metadata say that it holds a model in panels."""
    return file.metadata.get("format") == FORMAT


def open_panels(config: ModelConfig, file: SafetensorsFile, name: str) -> PanelSource:
    """The source of a file that `holds_panels`. Raises Error where it does not fit `config`."""
    metadata = file.metadata
    version = metadata.get("version")
    if version != VERSION:
        raise Error(
            f"{file.path}: packed in version {shown(version)} of the layout, this gptoss reads "
            f"version {VERSION}: convert the checkpoint again (gptoss convert --layout packed)"
        )
    for key, known in (("weights", WEIGHTS), ("experts", ("mxfp4", "bf16"))):
        if metadata.get(key) not in known:
            raise Error(
                f"{file.path}: metadata: {key}: expected one of {', '.join(known)}, "
                f"found {shown(metadata.get(key))}"
            )
    source = PanelSource(config, file, metadata["weights"], metadata["experts"], name)
    expected = source.tensors()
    missing = [info.name for info in expected if info.name not in file.entries]
    if missing:
        raise Error(f"{file.path}: missing tensors (by config.json): {listed(missing)}")
    extra = sorted(set(file.entries) - {info.name for info in expected})
    if extra:
        raise Error(f"{file.path}: unexpected tensors (by config.json): {listed(extra)}")
    for info in expected:
        entry = file.entries[info.name]
        if (entry.dtype, entry.shape) != (info.dtype, info.shape):
            raise Error(
                f"{file.path}: tensor {info.name}: expected {info.dtype} {list(info.shape)} (by "
                f"config.json), found {entry.dtype} {list(entry.shape)}"
            )
        if info.name.endswith(".panels") and entry.begin % 64:
            raise Error(
                f"{file.path}: tensor {info.name}: expected to begin at a multiple of 64 bytes, "
                f"found byte {entry.begin}"
            )
    return source


def _read_checksums(file: SafetensorsFile, infos: dict[str, TensorInfo]) -> dict[str, str]:
    try:
        text = file.metadata.get("checksums", "").encode("utf-8", "replace")
        found = files.parse_object(text, "checksums")
    except Error:
        found = {}
    good = all(
        isinstance(found.get(name), str) and len(found[name]) == len(_NO_CHECKSUM) for name in infos
    )
    if not good:
        raise Error(
            f"{file.path}: metadata: checksums: expected an object with 16 hexadecimal digits for "
            f"each tensor, found {shown(file.metadata.get('checksums'))}"
        )
    return dict(found)


def write_panels(
    source: TensorSource,
    directory: str | os.PathLike[str],
    weights: str = "published",
    progress: Progress | None = None,
    threads: int = 0,
) -> list[Path]:
    """Write `source` as panels into `directory`, new or empty. Returns the files written.

    weights: "published" (bf16, exact) or "q8" for attention and unembedding; experts stay as they
    are. threads: 0 for one per core. Never more than one tensor of the source and its panels are in
    memory; an interrupted call leaves no files (see `write_checkpoint`). Raises Error.
    """
    if weights not in WEIGHTS:
        raise Error(f"weights: expected one of {', '.join(WEIGHTS)}, found {shown(weights)}")
    if type(threads) is not int or not 0 <= threads <= _MAX_THREADS:
        raise Error(f"threads: expected 0 to {_MAX_THREADS}, found {shown(threads)}")
    if source.panels is not None:
        raise Error(
            f"{source.name}: is packed already (weights {source.panels}); pack the checkpoint that "
            f"it was made from"
        )
    if weights == "q8" and source.q8_0:
        raise Error(
            f"{source.name}: is stored in Q8_0, which packing would round a second time: expected "
            f"weights 'published', or the checkpoint that it was made from"
        )
    tensors = panel_tensors(source.config, source.expert_dtype, weights)
    total = sum(info.nbytes for info, _ in tensors.values())
    with new_directory(directory, total) as (target, partial):
        checksums = dict.fromkeys(tensors, _NO_CHECKSUM)

        def header() -> bytes:
            metadata = {
                "format": FORMAT,
                "version": VERSION,
                "weights": weights,
                "experts": source.expert_dtype,
                "checksums": json.dumps(checksums, separators=(",", ":")),
            }
            return encode_header(
                [(info.name, info.dtype, info.shape) for info, _ in tensors.values()], metadata
            )

        with (partial / FILE).open("wb") as file:
            file.write(header())
            done = 0
            for name, (info, format_) in tensors.items():
                digest, written = _write_tensor(file, source, info, format_, threads)
                if written != info.nbytes:
                    raise Error(f"{source.name}: tensor {name}: {written} bytes, not {info.nbytes}")
                checksums[name] = digest
                done += written
                if progress is not None:
                    progress(done, total)
            file.seek(0)
            file.write(header())  # as long as the first: checksums have a fixed length
            file.flush()
            os.fsync(file.fileno())
        names = [FILE, write_json(partial / "config.json", to_original(source.config))]
        names += copy_tokenizer(source, partial)
    return [target / name for name in names]


def _write_tensor(
    file: Any, source: TensorSource, info: TensorInfo, format_: str | None, threads: int
) -> tuple[str, int]:
    """Append one tensor; its checksum and size."""
    from xxhash import xxh3_64

    digest, written = xxh3_64(), 0
    for array in _panel_arrays(source, info, format_, threads):
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), _WRITE_BYTES):
            piece = data[start : start + _WRITE_BYTES]
            digest.update(piece)
            file.write(piece)
        written += len(data)
    return digest.hexdigest(), written


def _panel_arrays(
    source: TensorSource, info: TensorInfo, format_: str | None, threads: int
) -> Iterator[Array]:
    """What to write for a tensor of a model in panels."""
    if format_ is None:
        yield np.ascontiguousarray(source.tensor(info.name))
        return
    stem = info.name.removesuffix(".panels")
    if format_ == "mxfp4":
        names = [f"{stem}.blocks", f"{stem}.scales"]
        blocks, scales = (source.tensor(name) for name in names)
        for expert in range(len(blocks)):
            yield _core.pack("mxfp4", blocks=blocks[expert], scales=scales[expert], threads=threads)
    else:
        names = [stem if stem.endswith("_weight") else f"{stem}.weight"]
        weight = source.tensor(names[0])
        for matrix in weight if weight.ndim == 3 else [weight]:
            yield _core.pack(format_, weight=matrix, threads=threads)
    for name in names:
        source.release(name)
