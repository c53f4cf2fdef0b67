// matmul_f32 in portable vectors.
//
// Lanes are the sixteen rows of a panel; each operand element is broadcast. Weights are widened a
// stretch of columns at a time: mxfp4 and q8 into a buffer of the first-level cache that all
// operand rows share, bf16 in registers. A row's sum has one association whatever the number of
// rows: even and odd columns of a stretch apart, then stretch after stretch.
#pragma once

#include <string.h>

#include "core/cpu/kernels/table.h"
#include "core/cpu/kernels/vectors-inl.h"

namespace gptoss::cpu {
namespace {

constexpr int stretch_blocks = 8;
constexpr int64_t stretch_columns = stretch_blocks * panel_block;

constexpr int64_t rows_at_once = 96;  // their sums and the widened stretch stay in the cache

// A read this many bytes ahead: the hardware's own prefetching stops at the ends of pages.
constexpr int64_t prefetch_distance = 2048;

// Two columns of the rows in one vector.
struct Pair {
  Floats even, odd;
};

// Where bf16 pairs lie in a panel.
struct Bf16Pairs {
  const uint8_t* bytes;  // of the stretch's first pair
  GPTOSS_INLINE Pair load(int64_t pair, int part) const {
    const uint8_t* from = bytes + pair * panel_rows * 4 + part * lanes * 4;
    Pair result;
#if defined(__GNUC__)
    __builtin_prefetch(from + prefetch_distance);
    Words words;
    memcpy(&words, from, sizeof words);
    const Words low = words << 16;
    const Words high = words & 0xffff0000u;
    memcpy(&result.even, &low, sizeof low);
    memcpy(&result.odd, &high, sizeof high);
#else
    bf16 two[2];
    memcpy(two, from, sizeof two);
    result = {to_float(two[0]), to_float(two[1])};
#endif
    return result;
  }
};

// Widened before: (columns, panel_rows).
struct FloatPairs {
  const float* values;
  GPTOSS_INLINE Pair load(int64_t pair, int part) const {
    const float* even = values + 2 * pair * panel_rows + part * lanes;
    return {load_part(even), load_part(even + panel_rows)};
  }
};

// total[r] += Σ over a stretch, for R rows. Few rows take all vectors of a panel together, to hide
// the latency of the multiply-add; more take one after the other, so that all sums are in
// registers.
template <int R, class Pairs>
GPTOSS_INLINE void add_stretch(const Pairs& w, int64_t pairs, const float* const* x, float* total) {
  constexpr int together = R * parts <= 4 ? parts : 1;
  for (int first = 0; first < parts; first += together) {
    Floats even[together][R], odd[together][R];
    for (int i = 0; i < together; ++i) {
      for (int r = 0; r < R; ++r) {
        even[i][r] = odd[i][r] = splat(0.0f);
      }
    }
    for (int64_t p = 0; p < pairs; ++p) {
      for (int i = 0; i < together; ++i) {
        const Pair pair = w.load(p, first + i);
        for (int r = 0; r < R; ++r) {
          even[i][r] += pair.even * splat(x[r][2 * p]);
          odd[i][r] += pair.odd * splat(x[r][2 * p + 1]);
        }
      }
    }
    for (int i = 0; i < together; ++i) {
      for (int r = 0; r < R; ++r) {
        float* to = total + r * panel_rows + (first + i) * lanes;
        const Floats sum = load_part(to) + (even[i][r] + odd[i][r]);
        memcpy(to, &sum, sizeof sum);
      }
    }
  }
}

// The codes of a block in natural order, a byte each: out (panel_block, panel_rows).
GPTOSS_INLINE void widen_mxfp4(const uint8_t* block, const uint8_t* scales, float* out) {
  float scale[panel_rows];
  for (int r = 0; r < panel_rows; ++r) {
    scale[r] = e8m0_to_float(scales[r]);
  }
  for (int group = 0; group < 4; ++group) {
    uint32_t words[panel_rows];
    memcpy(words, block + group * sizeof words, sizeof words);
    // Column k of a group of 8 lies at these bits of a row's word: panels.h's table.
    constexpr int bit[8] = {0, 16, 4, 20, 8, 24, 12, 28};
    for (int k = 0; k < 8; ++k) {
      float* to = out + (group * 8 + k) * panel_rows;
      for (int r = 0; r < panel_rows; ++r) {
        to[r] = e2m1_to_float(words[r] >> bit[k] & 15u) * scale[r];
      }
    }
  }
}

// half: scales are float16 (q8_0), and not bf16 (q8).
GPTOSS_INLINE void widen_q8(const uint8_t* block, const uint8_t* scales, bool half, float* out) {
  float scale[panel_rows];
  for (int r = 0; r < panel_rows; ++r) {
    uint16_t bits;
    memcpy(&bits, scales + 2 * r, sizeof bits);
    scale[r] = half ? half_to_float(bits) : to_float(bf16{bits});
  }
  for (int group = 0; group < 8; ++group) {
    uint32_t words[panel_rows];
    memcpy(words, block + group * sizeof words, sizeof words);
    constexpr int shift[4] = {24, 8, 16, 0};  // brings column k's byte to the top: k0, k2, k1, k3
    for (int k = 0; k < 4; ++k) {
      float* to = out + (group * 4 + k) * panel_rows;
      for (int r = 0; r < panel_rows; ++r) {
        to[r] = static_cast<float>(static_cast<int32_t>(words[r] << shift[k]) >> 24) * scale[r];
      }
    }
  }
}

template <class Pairs>
GPTOSS_INLINE void add_stretch_rows(const Pairs& w, int64_t pairs, const MatmulArgs& a, int64_t k,
                                    int64_t first, int64_t last, float* total) {
  const float* x[rows_at_once];
  const int64_t stride = panel_cols(a.w.cols);
  for (int64_t i = first; i < last; ++i) {
    x[i - first] = a.x.x + a.row(i) * stride + k;
  }
  const int64_t count = last - first;
  int64_t i = 0;
  for (; i + GPTOSS_TILE_ROWS <= count; i += GPTOSS_TILE_ROWS) {
    add_stretch<GPTOSS_TILE_ROWS>(w, pairs, x + i, total + i * panel_rows);
  }
  for (; GPTOSS_TILE_ROWS > 2 && i + 2 <= count; i += 2) {
    add_stretch<2>(w, pairs, x + i, total + i * panel_rows);
  }
  for (; i < count; ++i) {
    add_stretch<1>(w, pairs, x + i, total + i * panel_rows);
  }
}

void panel_f32(const MatmulArgs& a, const uint8_t* panel, int64_t n, int64_t first, int64_t last) {
  alignas(64) float total[rows_at_once * panel_rows];
  alignas(64) float widened[stretch_columns * panel_rows];
  memset(total, 0, static_cast<size_t>((last - first) * panel_rows) * sizeof(float));
  const int64_t blocks = panel_blocks(a.w.cols);
  const int64_t block_bytes = panel_block_bytes(a.w.format);
  const uint8_t* scales = panel + blocks * block_bytes;
  for (int64_t b = 0; b < blocks; b += stretch_blocks) {
    const int64_t count = blocks - b < stretch_blocks ? blocks - b : stretch_blocks;
    const int64_t pairs = count * panel_block / 2;
    if (a.w.format == WeightFormat::bf16) {
      add_stretch_rows(Bf16Pairs{panel + b * block_bytes}, pairs, a, b * panel_block, first, last,
                       total);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* block = panel + (b + i) * block_bytes;
      float* to = widened + i * panel_block * panel_rows;
      if (a.w.format == WeightFormat::mxfp4) {
        widen_mxfp4(block, scales + (b + i) * panel_rows, to);
      } else {
        widen_q8(block, scales + (b + i) * panel_rows * 2, a.w.format == WeightFormat::q8_0, to);
      }
    }
    add_stretch_rows(FloatPairs{widened}, pairs, a, b * panel_block, first, last, total);
  }
  const int64_t count = a.w.rows - n < panel_rows ? a.w.rows - n : panel_rows;
  for (int64_t i = first; i < last; ++i) {
    const float* from = total + (i - first) * panel_rows;
    float* to = a.y + i * a.y_stride + n;
    for (int64_t r = 0; r < count; ++r) {
      to[r] = from[r] + (a.w.bias != nullptr ? to_float(a.w.bias[n + r]) : 0.0f);
    }
  }
}

void matmul_f32(const MatmulArgs& a) {
  const int64_t bytes = panel_bytes(a.w.format, a.w.cols);
  for (int64_t p = a.begin; p < a.end; ++p) {
    for (int64_t first = 0; first < a.rows; first += rows_at_once) {
      const int64_t last = first + rows_at_once < a.rows ? first + rows_at_once : a.rows;
      panel_f32(a, a.w.data + p * bytes, p * panel_rows, first, last);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu
