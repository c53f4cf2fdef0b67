"""Checkpoints: published files of either layout, synthetic models and arrays behind one interface.

Files are mapped, not read: `open_checkpoint` looks at headers only, and a tensor is a view of the
file until a backend repacks it. Everything is checked before the first tensor is handed out, except
the MXFP4 scales, which are checked when they are asked for.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gptoss import files
from gptoss.checkpoint.gguf import open_gguf
from gptoss.checkpoint.layouts import (
    Stored,
    detect,
    expert_dtype,
    parse_shard,
    rename_misnamed,
    stored_tensors,
)
from gptoss.checkpoint.mistaken import CONFIG, check_folder, check_pointer
from gptoss.checkpoint.panels import holds_panels, open_panels, write_panels
from gptoss.checkpoint.quantized import QuantizedExperts
from gptoss.checkpoint.safetensors import HEADER_LIMIT, SafetensorsFile
from gptoss.checkpoint.source import (
    Array,
    ArraySource,
    TensorInfo,
    TensorSource,
    listed,
    seam_tensors,
    transpose,
)
from gptoss.checkpoint.synthetic import PREFIX as SYNTHETIC
from gptoss.checkpoint.synthetic import SyntheticSource
from gptoss.checkpoint.write import write_checkpoint
from gptoss.errors import Error, shown
from gptoss.gguf.reader import is_gguf, parts_of
from gptoss.model import ModelConfig, f32_to_bf16, read_config
from gptoss.tokenizer.files import tokenizer_directory

__all__ = [
    "ArraySource",
    "QuantizedExperts",
    "TensorInfo",
    "TensorSource",
    "open_checkpoint",
    "seam_tensors",
    "write_checkpoint",
    "write_panels",
]

INDEX = "model.safetensors.index.json"
BUNDLED_MODEL = Path(__file__).parents[1] / "bundled" / "nano"


def open_checkpoint(
    path_or_spec: str | os.PathLike[str], *, experts: str | None = None, rule: str = "mx"
) -> TensorSource:
    """A model from a directory, a .safetensors file beside its config.json, a GGUF file or a spec.

    A spec is "synthetic:gpt-oss-20b?layers=4&seed=0" (gptoss.checkpoint.synthetic). Of a
    Hugging Face checkout the files at the top are used; a directory with nothing but `original/`
    stands for that folder, and one without safetensors for the GGUF file in it. A file is GGUF by
    its first bytes, whatever its name.

    experts: None keeps experts as they are stored; "mxfp4" quantizes those of a bf16 checkpoint
    when they are asked for, by `rule` "mx" or "mse" (gptoss.model.mxfp4).

    Raises Error, naming the file, the tensor, what was expected and what was found.
    """
    if experts not in (None, "mxfp4"):
        raise Error(f"experts: expected None or 'mxfp4', found {shown(experts)}")
    if rule not in ("mx", "mse"):
        raise Error(f"rule: expected 'mx' or 'mse', found {shown(rule)}")
    text = os.fspath(path_or_spec)
    if isinstance(text, str) and text.startswith(SYNTHETIC):
        return SyntheticSource.from_spec(text)
    try:
        source: TensorSource = _open_files(Path(text))
    except OSError as error:
        raise Error(f"{text}: cannot be read: {files.reason(error)}") from None
    if experts == "mxfp4" and source.expert_dtype == "bf16":
        return QuantizedExperts(source, rule)
    return source


class MappedSource(TensorSource):
    """Tensors in mapped safetensors files of one of the published layouts."""

    def __init__(
        self,
        config: ModelConfig,
        stored: Iterable[Stored],
        holders: dict[str, SafetensorsFile],
        *,
        name: str,
        layout: str,
        directory: Path,
    ) -> None:
        """`holders`: stored name → the file that holds it, checked to fit `stored`."""
        files = sorted({file.path for file in holders.values()})
        super().__init__(
            config,
            name=name,
            layout=layout,
            expert_dtype=expert_dtype(layout),
            files=files,
            directory=directory,
        )
        self._holders = holders
        self._stored: dict[str, tuple[Stored, slice]] = {}
        for tensor in stored:
            row = 0
            for part in tensor.parts:
                self._stored[part.name] = tensor, slice(row, row + part.shape[0])
                row += part.shape[0]

    def _read(self, info: TensorInfo) -> Array:
        stored, rows = self._stored[info.name]
        view = self._holders[stored.name].view(stored.name)
        if not stored.transposed:
            return _rounded(view[rows])
        out = np.empty(info.shape, dtype=np.uint16)
        for index in range(len(view)):
            transpose(_rounded(view[index]), out[index])
        return out

    def _read_expert(self, name: str, index: int) -> Array:
        stored, _ = self._stored[name]
        matrix = _rounded(self._holders[stored.name].view(stored.name)[index])
        if stored.transposed:
            out = np.empty(matrix.shape[::-1], dtype=matrix.dtype)
            transpose(matrix, out)
            return out
        return matrix

    def release(self, name: str) -> None:
        self.info(name)
        stored, _ = self._stored[name]
        self._holders[stored.name].release(stored.name)

    def close(self) -> None:
        for file in self._holders.values():
            file.close()


def _rounded(array: Array) -> Array:
    """float16 and float32 as the nearest bf16 (uint16); what is stored otherwise as it is."""
    if array.dtype == np.float16:  # row by row: float32 in between takes twice the room
        out = np.empty(array.shape, dtype=np.uint16)
        for index in range(len(array)):
            out[index] = f32_to_bf16(array[index])
        return out
    return f32_to_bf16(array) if array.dtype == np.float32 else array


def _open_files(path: Path) -> TensorSource:
    if "\0" in str(path):
        raise Error(f"{shown(str(path))}: expected a path, found one with a NUL character")
    if path.is_dir():
        directory = _model_directory(path)
        only = _only_gguf(directory)
        if only is not None:
            return open_gguf(only, str(path))
    elif path.is_file():
        check_pointer(path)
        if is_gguf(path):
            return open_gguf(path, str(path))
        directory = path.parent
    else:
        raise Error(
            f"{path}: expected a checkpoint's directory, .safetensors or GGUF file, found nothing "
            f"there"
        )
    check_folder(directory)
    if path.is_dir():
        paths, index = _find_shards(directory)
    else:
        paths, index = [_single_file(path)], None
    config = read_config(directory / CONFIG)
    opened: list[SafetensorsFile] = []
    try:
        for shard in paths:
            check_pointer(shard)
            opened.append(SafetensorsFile(shard))
        if len(opened) == 1 and holds_panels(opened[0]):
            return open_panels(config, opened[0], str(path))
        holders = _find_holders(opened, index, directory)
        layout = detect({name: file.entries[name].dtype for name, file in holders.items()})
        if layout is None:
            raise Error(
                f"{directory}: expected gpt-oss tensors such as embedding.weight or "
                f"model.embed_tokens.weight, found {listed(sorted(holders)) or 'no tensor at all'}"
            )
        stored = rename_misnamed(stored_tensors(config, layout), holders)
        _check_tensors(stored, holders, directory)
    except BaseException:
        for file in opened:
            file.close()
        raise
    return MappedSource(
        config,
        stored,
        holders,
        name=str(path),
        layout=layout,
        directory=tokenizer_directory(path if path.is_dir() else directory, directory),
    )


def _model_directory(path: Path) -> Path:
    """`path` itself, or its `original/` where only that holds weights."""
    if any(path.glob("*.safetensors")) or (path / INDEX).is_file():
        return path
    original = path / "original"
    if (original / CONFIG).is_file() and any(original.glob("*.safetensors")):
        return original
    return path


def _only_gguf(directory: Path) -> Path | None:
    """The GGUF file, or the first part, of a folder without safetensors; None where there is none.

    Raises Error where there are several to choose from.
    """
    if (directory / INDEX).is_file() or any(directory.glob("*.safetensors")):
        return None
    found = sorted(path for path in directory.glob("*.gguf") if path.is_file())
    for path in found:
        check_pointer(path)
    models = list(dict.fromkeys(parts_of(path)[0] for path in found))
    if len(models) > 1:
        raise Error(
            f"{directory}: expected one model, found {listed([path.name for path in models])}: "
            f"give the file"
        )
    return models[0] if models else None


def _single_file(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise Error(
            f"{path}: expected a .safetensors or GGUF file, or a directory, found another file"
        )
    shard = parse_shard(path.name)
    if shard is not None and shard[2] > 1:
        raise Error(
            f"{path}: expected a whole model, found one shard of several: give the directory"
        )
    return path


def _find_shards(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a model and, where there is an index, its weight map."""
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if (directory / INDEX).exists():
        weight_map = _read_index(directory / INDEX)
        named = sorted(set(weight_map.values()))
        for name in named:
            if not (directory / name).is_file():
                raise Error(f"{directory / INDEX}: names the shard {name}, which is missing")
        if "model.safetensors" in names and "model.safetensors" not in named:
            raise Error(
                f"{directory}: holds both model.safetensors and an index that names other files: "
                f"remove whichever does not belong to the model"
            )
        return [directory / name for name in named], weight_map
    if not names:
        found = sorted(path.name for path in directory.iterdir())
        raise Error(
            f"{directory}: expected a model (config.json and *.safetensors), "
            f"found {listed(found) or 'an empty directory'}"
        )
    if "model.safetensors" in names:
        names = ["model.safetensors"]
    elif len(names) > 1 or parse_shard(names[0]) is not None:
        _check_numbering(names, directory)
    return [directory / name for name in names], None


def _check_numbering(names: list[str], directory: Path) -> None:
    """Raise Error unless `names` are all shards of one model (numbered from 0 or from 1)."""
    parsed = [parse_shard(name) for name in names]
    shards = [shard for shard in parsed if shard is not None]
    if len(shards) != len(names) or len({(stem, count) for stem, _, count in shards}) != 1:
        raise Error(
            f"{directory}: expected model.safetensors, an index, or shards of one model, "
            f"found {listed(names)}"
        )
    count = shards[0][2]
    numbers = {number for _, number, _ in shards}
    # numbering from 0 was published both as 0..count-1 and as 0..count
    first, last = (0, max(count - 1, max(numbers))) if 0 in numbers else (1, count)
    if last > count or len(numbers) < len(names):
        raise Error(f"{directory}: shard numbers contradict each other: {listed(names)}")
    if len(numbers) < last - first + 1:
        missing = [n for n in range(first, min(last, first + 1000) + 1) if n not in numbers]
        raise Error(
            f"{directory}: expected shards {first}..{last} of {count}, missing number "
            f"{', '.join(map(str, missing[:10]))}{' and more' if len(missing) > 10 else ''}"
        )


def _read_index(path: Path) -> dict[str, str]:
    """The weight map of an index: tensor → file in the same directory."""
    weight_map = files.read_object(path, HEADER_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Error(
            f"{path}: weight_map: expected an object {{tensor: file}}, found {shown(weight_map)}"
        )
    for tensor, file in weight_map.items():
        # a plain name: an index must not reach outside its own directory
        plain = isinstance(file, str) and file.isprintable() and not set(file) & set('/\\:*?"<>|')
        if not plain or not file.endswith(".safetensors") or len(file) > 255:
            raise Error(
                f"{path}: weight_map: tensor {shown(tensor)}: expected the name of a .safetensors "
                f"file in the same directory, found {shown(file)}"
            )
    return weight_map


def _find_holders(
    files: list[SafetensorsFile], index: dict[str, str] | None, directory: Path
) -> dict[str, SafetensorsFile]:
    """Stored name → the file that holds it. Raises Error where files and index disagree."""
    holders: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file.entries:
            if name in holders:
                raise Error(
                    f"{file.path}: tensor {shown(name)} is in {holders[name].path.name} as well"
                )
            holders[name] = file
    if index is None:
        return holders
    for name, expected in index.items():
        if name not in holders:
            raise Error(
                f"{directory / expected}: tensor {shown(name)}: expected by {INDEX}, not found"
            )
        if holders[name].path.name != expected:
            raise Error(
                f"{directory / INDEX}: tensor {shown(name)}: expected in {expected}, found in "
                f"{holders[name].path.name}"
            )
    for name, holder in holders.items():
        if name not in index:
            raise Error(f"{holder.path}: tensor {shown(name)} is not named in {INDEX}")
    return holders


def _check_tensors(
    stored: list[Stored], holders: dict[str, SafetensorsFile], directory: Path
) -> None:
    """Raise Error unless the files hold exactly the tensors that config.json implies.

    float16 and float32 may stand for bf16, which a warning tells.
    """
    place = directory / CONFIG
    missing = [tensor.name for tensor in stored if tensor.name not in holders]
    if missing:
        raise Error(f"{directory}: missing tensors (by {place}): {listed(missing)}")
    known = {tensor.name for tensor in stored}
    extra = [name for name in holders if name not in known]
    if extra:
        raise Error(
            f"{holders[extra[0]].path}: unexpected tensors (by {place}): {listed(sorted(extra))}"
        )
    wide: dict[str, str] = {}  # dtype → a tensor of it
    for tensor in stored:
        entry = holders[tensor.name].entries[tensor.name]
        where = f"{holders[tensor.name].path}: tensor {tensor.name}"
        if tensor.dtype == "BF16" and entry.dtype in ("F16", "F32"):
            wide[entry.dtype] = tensor.name
        elif entry.dtype != tensor.dtype:
            floating = tensor.dtype == "BF16" and entry.dtype == "F64"
            way_out = (
                ": save the model in bfloat16 (model.to(torch.bfloat16).save_pretrained)"
                if floating
                else ""
            )
            raise Error(f"{where}: expected dtype {tensor.dtype}, found {entry.dtype}{way_out}")
        if entry.shape != tensor.shape:
            raise Error(
                f"{where}: expected shape {list(tensor.shape)} (by {place}), "
                f"found {list(entry.shape)}"
            )
    if wide:
        kinds = " and ".join(f"{kind} (such as {name})" for kind, name in sorted(wide.items()))
        warnings.warn(
            f"{directory}: is not stored in bf16 but in {kinds}: weights are rounded to bf16, once",
            stacklevel=2,
        )
