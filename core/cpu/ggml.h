// Blocks of 32 values as ggml's files store them → the published forms (core/dtype.h).
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace gptoss::cpu {

constexpr int ggml_mxfp4_bytes = 1 + mx_block_bytes;  // an e8m0 scale, then e2m1 pairs
constexpr int ggml_q8_0_bytes = 2 + mx_block;         // a float16 scale, then int8

// Where MXFP4 rows go, a whole matrix or every second row of it.
struct MxRows {
  uint8_t* blocks = nullptr;  // row r from blocks + r * block_stride on: (count, 16)
  uint8_t* scales = nullptr;  // row r from scales + r * scale_stride on: (count)
  int64_t block_stride = 0, scale_stride = 0;
};

// from: (rows, count, 17). halves: in a byte lie values i and i + 16, as ggml has them; otherwise
// 2i and 2i + 1, as published.
void unpack_mxfp4(const uint8_t* from, bool halves, int64_t rows, int64_t count, const MxRows& to,
                  int threads);

// from: (count, 34) → out: (count, 32), the product of integer and scale rounded once. Returns
// whether all scales are finite.
bool dequantize_q8_0(const uint8_t* from, int64_t count, bf16* out, int threads);

}  // namespace gptoss::cpu
