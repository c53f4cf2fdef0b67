"""Panels read by the table in core/cpu/panels.h, in NumPy, and random matrices in each format."""

import numpy as np

from gptoss.model.bf16 import bf16_to_f32, f32_to_bf16
from gptoss.model.mxfp4 import VALUES
from gptoss.native import _kernels

FORMATS = ["bf16", "mxfp4", "q8", "q8_0"]
ROWS = 16  # of a panel
BLOCK = 32  # columns
BLOCK_BYTES = {"bf16": 1024, "mxfp4": 256, "q8": 512, "q8_0": 512}
SCALE_BYTES = {"bf16": 0, "mxfp4": 16, "q8": 32, "q8_0": 32}
NIBBLES = ((0, 0), (2, 0), (0, 4), (2, 4), (1, 0), (3, 0), (1, 4), (3, 4))  # (byte, shift) of k


def unpack(packed):
    """float64 [padded rows, padded columns] of a matrix in panels."""
    panels, blocks = -(-packed.rows // ROWS), -(-packed.cols // BLOCK)
    size = blocks * BLOCK_BYTES[packed.format]
    data, scales = packed.data[:, :size], packed.data[:, size:]
    if packed.format == "bf16":
        pairs = data.copy().view(np.uint16).reshape(panels, blocks * 16, ROWS, 2)
        values = bf16_to_f32(pairs).astype(np.float64)
    elif packed.format == "mxfp4":
        lanes = data.reshape(panels, blocks * 4, ROWS, 4)
        codes = np.stack([lanes[..., byte] >> shift & 15 for byte, shift in NIBBLES], -1)
        values = np.asarray(VALUES, np.float64)[codes]
    else:
        lanes = data.reshape(panels, blocks * 8, ROWS, 4)
        values = lanes[..., [0, 2, 1, 3]].view(np.int8).astype(np.float64)
    values = values.transpose(0, 2, 1, 3).reshape(panels * ROWS, blocks * BLOCK)
    if packed.format == "bf16":
        return values
    return values * np.repeat(block_scales(packed, scales, blocks), BLOCK, axis=1)


def block_scales(packed, scales, blocks):
    """float64 [padded rows, blocks]."""
    scales = scales[:, : blocks * SCALE_BYTES[packed.format]].copy()
    if packed.format == "mxfp4":
        found = 2.0 ** (scales.reshape(-1, blocks, ROWS).astype(np.float64) - 127)
    elif packed.format == "q8_0":
        found = scales.view(np.float16).reshape(-1, blocks, ROWS).astype(np.float64)
    else:
        found = bf16_to_f32(scales.view(np.uint16)).reshape(-1, blocks, ROWS).astype(np.float64)
    return found.transpose(0, 2, 1).reshape(-1, blocks)


def random_bf16(random, *shape):
    """Both signs, magnitudes over six orders."""
    values = random.standard_normal(shape) * 10.0 ** random.integers(-3, 3, shape)
    return f32_to_bf16(values.astype(np.float32))


def random_mxfp4(random, rows, cols, scales=(119, 128)):
    blocks = random.integers(0, 256, (rows, cols // BLOCK, 16), np.uint8)
    return blocks, random.integers(*scales, (rows, cols // BLOCK), np.uint8)


def random_q8_0(random, rows, cols):
    """Blocks as GGUF has them: any bytes, float16 scales of both signs over some orders."""
    blocks = random.integers(0, 256, (rows, cols // BLOCK, 34), np.uint8)
    scales = random.standard_normal(blocks.shape[:2]) * 10.0 ** random.integers(-6, 1, (rows, 1))
    blocks[..., :2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return blocks


def random_packed(random, format, rows, cols):
    """A random matrix of this format and its exact values, float64 [rows, cols]."""
    if format == "mxfp4":
        blocks, scales = random_mxfp4(random, rows, cols)
        packed = _kernels.pack("mxfp4", blocks=blocks, scales=scales)
    elif format == "q8_0":
        packed = _kernels.pack("q8_0", blocks=random_q8_0(random, rows, cols))
    else:
        packed = _kernels.pack(format, weight=random_bf16(random, rows, cols))
    return packed, unpack(packed)[:rows, :cols]


def fits(format, cols):
    return format not in ("mxfp4", "q8_0") or cols % BLOCK == 0
