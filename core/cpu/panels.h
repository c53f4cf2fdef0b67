// Weights as the CPU kernels read them: panels of sixteen output rows, in the order in which one
// pass over the input reads them. A vector register holds one weight of each row, so that a product
// needs no horizontal sums, and a panel is one stream of memory.
//
// A matrix (rows, cols) is ceil(rows / 16) panels, each panel_bytes() long and 64-byte aligned;
// rows and columns past the matrix hold zeros. A panel is its blocks of 32 columns, then their
// scales:
//
//   format  block                          bytes of (row r, columns k…)                   scales
//   bf16    16 pairs · 16 rows · 2         pair p: k = 2p, 2p + 1                         none
//   mxfp4   4 groups · 16 rows · 4 bytes   group g, k = 8g …: k0|k2<<4, k4|k6<<4,         16 e8m0
//                                          k1|k3<<4, k5|k7<<4 (e2m1 codes)                a block
//   q8      8 groups · 16 rows · 4 bytes   group g, k = 4g …: k0, k2, k1, k3 (int8)       16 bf16
//                                                                                         a block
//   q8_0    as q8                                                                         16 f16
//                                                                                         a block
//
// q8 is what is made here of bf16; q8_0 holds what a GGUF file has, whose scales bf16 would round.
//
// In mxfp4, q8 and q8_0 the bytes lie so that the two 16-bit halves of a row's four bytes hold
// neighbouring columns at the same bit position: one shift or table look-up of 16-bit lanes gives
// the pairs (k, k + 1) that pair-wise multiply-add instructions (vpmaddwd, vpdpwssd, vdpbf16ps,
// tdpbf16ps) take.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace gptoss::cpu {

enum class WeightFormat : int { bf16 = 0, mxfp4 = 1, q8 = 2, q8_0 = 3 };
constexpr int weight_formats = 4;

constexpr int panel_rows = 16;
constexpr int panel_block = 32;  // columns that share a scale, in every format that has scales
static_assert(panel_block == mx_block);

GPTOSS_INLINE int64_t panel_count(int64_t rows) { return (rows + panel_rows - 1) / panel_rows; }
GPTOSS_INLINE int64_t panel_blocks(int64_t cols) { return (cols + panel_block - 1) / panel_block; }
// Elements of an operand's row: zeros from cols on.
GPTOSS_INLINE int64_t panel_cols(int64_t cols) { return panel_blocks(cols) * panel_block; }

GPTOSS_INLINE int64_t panel_block_bytes(WeightFormat format) {
  return format == WeightFormat::bf16    ? panel_block * panel_rows * 2
         : format == WeightFormat::mxfp4 ? panel_block * panel_rows / 2
                                         : panel_block * panel_rows;
}
GPTOSS_INLINE int64_t panel_scale_bytes(WeightFormat format) {
  return format == WeightFormat::bf16    ? 0
         : format == WeightFormat::mxfp4 ? panel_rows
                                         : panel_rows * 2;
}
GPTOSS_INLINE int64_t panel_bytes(WeightFormat format, int64_t cols) {
  const int64_t bytes =
      panel_blocks(cols) * (panel_block_bytes(format) + panel_scale_bytes(format));
  return (bytes + 63) / 64 * 64;
}

// A matrix of weights in panels, owned by somebody else.
struct Panels {
  WeightFormat format = WeightFormat::bf16;
  int64_t rows = 0, cols = 0;
  const uint8_t* data = nullptr;  // (panel_count(rows), panel_bytes(format, cols))
  const bf16* bias = nullptr;     // (rows), or null
};

}  // namespace gptoss::cpu
