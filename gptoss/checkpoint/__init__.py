"""Weights in files of any layout, read as canonical tensors and written back."""

from gptoss.checkpoint.files import BUNDLED_MODEL as BUNDLED_MODEL
from gptoss.checkpoint.files import INDEX as INDEX
from gptoss.checkpoint.files import open_checkpoint as open_checkpoint
from gptoss.checkpoint.gguf_write import write_gguf as write_gguf
from gptoss.checkpoint.layouts import parse_shard as parse_shard
from gptoss.checkpoint.panels import PanelSource as PanelSource
from gptoss.checkpoint.panels import write_panels as write_panels
from gptoss.checkpoint.quantized import QuantizedExperts as QuantizedExperts
from gptoss.checkpoint.source import ArraySource as ArraySource
from gptoss.checkpoint.source import TensorInfo as TensorInfo
from gptoss.checkpoint.source import TensorSource as TensorSource
from gptoss.checkpoint.source import row_blocks as row_blocks
from gptoss.checkpoint.synthetic import PREFIX as PREFIX
from gptoss.checkpoint.synthetic import PRESETS as PRESETS
from gptoss.checkpoint.write import write_checkpoint as write_checkpoint
