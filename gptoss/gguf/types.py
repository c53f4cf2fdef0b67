"""Numbers of the format: types of metadata, types of tensors and their sizes."""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # alike but for byte order, which version 3 leaves open; version 1 is from 2023
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"

# Types of metadata values.
U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
SCALARS = {
    U8: struct.Struct("<B"),
    I8: struct.Struct("<b"),
    U16: struct.Struct("<H"),
    I16: struct.Struct("<h"),
    U32: struct.Struct("<I"),
    I32: struct.Struct("<i"),
    F32: struct.Struct("<f"),
    BOOL: struct.Struct("<?"),
    U64: struct.Struct("<Q"),
    I64: struct.Struct("<q"),
    F64: struct.Struct("<d"),
}


class TensorType(NamedTuple):
    """How a tensor's values are stored: `block` neighbouring ones of a row in `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


MXFP4 = 39  # ggml's: in a byte of a block, values i and i + 16
MXFP4_OLLAMA = 4  # Ollama's, from before ggml had one: the published order, values 2i and 2i + 1
# ggml's numbers. Only some of these can be read; the others are known in order to be named.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    MXFP4_OLLAMA: TensorType("MXFP4", 32, 17),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    MXFP4: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
    41: TensorType("Q1_0", 128, 18),
}
TYPE_NUMBERS = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30, "MXFP4": MXFP4}  # those that are written
