// matmul_i16 with AVX2, AVX-512 and AVX-512 VNNI.
//
// A panel's row is a 32-bit lane. One register of weights (4 bytes a row) widens to registers of
// int16 pairs (k, k + 1) of each row; the operand's pair is broadcast to all lanes; a pair-wise
// multiply-add (vpmaddwd and vpaddd, or vpdpwssd) adds both products to the row's int32 sum. At the
// end of a block of 32 columns the sums, which are exact, become float32, take the operand's and
// the rows' scales, and are added up.
//
// One operand row, mxfp4, AVX-512: 9 instructions per 64 bytes of weights besides the loads, 60 G
// weights/s measured on one core of a Zen 4 out of cache, about the speed at which it reads memory.
#pragma once

#include <string.h>

#include "core/cpu/kernels/lanes-inl.h"
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {
namespace {

// ---- R operand rows by P panels ----

// The same address, which the compiler takes for another: it would otherwise load what does not
// change in a loop before it, into more registers than there are.
GPTOSS_INLINE const int32_t* opaque(const int32_t* pointer) {
#if defined(__GNUC__)
  asm("" : "+r"(pointer));
#endif
  return pointer;
}

// One core reads several streams of memory faster than one, so four panels are read at a time. With
// a read into the second-level cache this many bytes ahead, four reached 98% of what plain reading
// did on a Zen 4 (two threads), one 85%.
constexpr int streams = 4;
constexpr int64_t streams_prefetch = 1024;
// Up to this many rows, the sums of a whole panel fit into registers (AVX2 has sixteen).
constexpr int few_rows = 3;

// R rows side by side, so that one address serves all of them: pairs (panel_cols / 2, R), their
// scales (blocks, R). A single row is used where it lies.
struct RowsI16 {
  const int32_t* pairs;
  const float* scale;
};

template <WeightFormat format>
struct Format;
template <>
struct Format<WeightFormat::mxfp4> {
  static constexpr int columns = 8;  // in the four bytes of a lane
  static constexpr int64_t block_bytes = panel_rows * panel_block / 2;
  static constexpr int64_t scale_bytes = panel_rows;
  E2m1 e2m1;
  GPTOSS_INLINE void widen(Lanes bytes, Lanes* pairs) const { e2m1.widen(bytes, pairs); }
  static GPTOSS_INLINE LaneFloats scales(const uint8_t* from) {
    return floats_product(scales_e8m0(from), floats_splat(0.5f));  // the table is doubled
  }
};
template <>
struct Format<WeightFormat::q8> {
  static constexpr int columns = 4;
  static constexpr int64_t block_bytes = panel_rows * panel_block;
  static constexpr int64_t scale_bytes = panel_rows * 2;
  GPTOSS_INLINE void widen(Lanes bytes, Lanes* pairs) const { widen_i8(bytes, pairs); }
  static GPTOSS_INLINE LaneFloats scales(const uint8_t* from) { return scales_bf16(from); }
};
template <>
struct Format<WeightFormat::q8_0> : Format<WeightFormat::q8> {
  static GPTOSS_INLINE LaneFloats scales(const uint8_t* from) { return scales_f16(from); }
};

// sum[p][r] (registers of floats) += one block of panel p times row r. `block`: its bytes in the
// first panel, `scales` likewise; the next panel lies panel_stride further.
template <WeightFormat format, int R, int P>
GPTOSS_INLINE void add_block(const Format<format>& w, const uint8_t* block, const uint8_t* scales,
                             int64_t panel_stride, const int32_t* x, const float* x_scale,
                             LaneFloats (*sum)[R]) {
  using F = Format<format>;
  constexpr int pair_count = F::columns / 2;
  // Registers of a panel that share one load of an operand, and sums of each: enough of them to
  // hide the latency of the multiply-add, not more than there are registers. Integer sums are
  // exact: how they are split changes nothing.
  constexpr int together = R <= few_rows ? registers : 1;
  constexpr int split = together * R >= 4 ? 1 : 2;
  for (int p = 0; p < P; ++p, block += panel_stride, scales += panel_stride) {
    GPTOSS_UNROLL
    for (int line = 0; line < F::block_bytes; line += 64) {
      __builtin_prefetch(block + line + streams_prefetch, 0, 2);
    }
    for (int first = 0; first < registers; first += together) {
      x = opaque(x);
      Lanes exact[together][R][split];
      for (int i = 0; i < together; ++i) {
        for (int r = 0; r < R; ++r) {
          for (int h = 0; h < split; ++h) {
            exact[i][r][h] = lanes_zero();
          }
        }
      }
      GPTOSS_UNROLL
      for (int group = 0; group < panel_block / F::columns; ++group) {
        Lanes pairs[together][pair_count];
        for (int i = 0; i < together; ++i) {
          w.widen(lanes_load(block + group * panel_rows * 4 + (first + i) * GPTOSS_VECTOR_BYTES),
                  pairs[i]);
        }
        for (int c = 0; c < pair_count; ++c) {
          for (int r = 0; r < R; ++r) {
            const Lanes operand = lanes_splat(x[(group * pair_count + c) * R + r]);
            for (int i = 0; i < together; ++i) {
              Lanes& to = exact[i][r][c % split];
              to = add_pairs(to, pairs[i][c], operand);
            }
          }
        }
      }
      for (int i = 0; i < together; ++i) {
        const LaneFloats w_scale = F::scales(scales + (first + i) * F::scale_bytes / registers);
        for (int r = 0; r < R; ++r) {
          const Lanes total =
              split == 2 ? lanes_add(exact[i][r][0], exact[i][r][split - 1]) : exact[i][r][0];
          LaneFloats& to = sum[p * registers + first + i][r];
          to = floats_add_product(to, floats_product(floats_of(total), floats_splat(x_scale[r])),
                                  w_scale);
        }
      }
    }
  }
}

// y[r, n] for R rows and P panels from row n of the weights on.
template <WeightFormat format, int R, int P>
GPTOSS_NOINLINE void tile_i16(const MatmulArgs& a, const RowsI16& x, int64_t first, int64_t panel) {
  using F = Format<format>;
  const int64_t blocks = panel_blocks(a.w.cols);
  const int64_t stride = panel_bytes(format, a.w.cols);
  const uint8_t* bytes = a.w.data + panel * stride;
  const uint8_t* scales = bytes + blocks * F::block_bytes;
  const F w;
  LaneFloats sum[P * registers][R];
  for (int i = 0; i < P * registers; ++i) {
    for (int r = 0; r < R; ++r) {
      sum[i][r] = floats_zero();
    }
  }
  for (int64_t b = 0; b < blocks; ++b) {
    add_block<format, R, P>(w, bytes + b * F::block_bytes, scales + b * F::scale_bytes, stride,
                            x.pairs + b * (panel_block / 2) * R, x.scale + b * R, sum);
  }
  for (int r = 0; r < R; ++r) {
    for (int p = 0; p < P; ++p) {
      alignas(64) float y[panel_rows];
      for (int i = 0; i < registers; ++i) {
        floats_store(y + i * (GPTOSS_VECTOR_BYTES / 4), sum[p * registers + i][r]);
      }
      const int64_t n = (panel + p) * panel_rows;
      const int64_t count = a.w.rows - n < panel_rows ? a.w.rows - n : panel_rows;
      float* to = a.y + (first + r) * a.y_stride + n;
      for (int64_t i = 0; i < count; ++i) {
        to[i] = y[i] + (a.w.bias != nullptr ? to_float(a.w.bias[n + i]) : 0.0f);
      }
    }
  }
}

// Rows are taken eight, or four and fewer at a time; more than one are laid side by side first.
struct RowGroup {
  int64_t first;
  int count;
  RowsI16 x;
};

// R rows by the panels [panel, panel + count).
template <WeightFormat format, int R>
GPTOSS_INLINE void panels_of_group(const MatmulArgs& a, const RowGroup& g, int64_t panel,
                                   int64_t count) {
  if (count == streams) {
    tile_i16<format, R, streams>(a, g.x, g.first, panel);
    return;
  }
  for (int64_t p = panel; p < panel + count; ++p) {
    tile_i16<format, R, 1>(a, g.x, g.first, p);
  }
}

template <WeightFormat format>
GPTOSS_INLINE void panels_i16(const MatmulArgs& a, const RowGroup* groups, int count) {
  for (int64_t p = a.begin; p < a.end; p += streams) {
    const int64_t panels = a.end - p < streams ? a.end - p : streams;
    for (int g = 0; g < count; ++g) {
      switch (groups[g].count) {
        case 8:
          panels_of_group<format, 8>(a, groups[g], p, panels);
          break;
        case 4:
          panels_of_group<format, 4>(a, groups[g], p, panels);
          break;
        case 3:
          panels_of_group<format, 3>(a, groups[g], p, panels);
          break;
        case 2:
          panels_of_group<format, 2>(a, groups[g], p, panels);
          break;
        default:
          panels_of_group<format, 1>(a, groups[g], p, panels);
      }
    }
  }
}

GPTOSS_INLINE int rows_of_group(int64_t left) {
  return left >= 8 ? 8 : left >= 4 ? 4 : static_cast<int>(left);
}

// R rows side by side: to (n, R).
template <int R, class T>
GPTOSS_NOINLINE void interleave(const T* const* from, int64_t n, T* __restrict to) {
  const T* row[R];
  for (int r = 0; r < R; ++r) {
    row[r] = from[r];
  }
  for (int64_t i = 0; i < n; ++i) {
    for (int r = 0; r < R; ++r) {
      to[i * R + r] = row[r][i];
    }
  }
}

template <class T>
GPTOSS_INLINE void interleave_rows(const T* const* from, int count, int64_t n, T* to) {
  switch (count) {
    case 8:
      interleave<8>(from, n, to);
      break;
    case 4:
      interleave<4>(from, n, to);
      break;
    case 3:
      interleave<3>(from, n, to);
      break;
    default:
      interleave<2>(from, n, to);
  }
}

// One row, or rows side by side at `to`, which has room for them.
GPTOSS_INLINE RowsI16 gather_rows(const MatmulArgs& a, int64_t first, int count, uint8_t* to) {
  const int64_t blocks = panel_blocks(a.w.cols);
  const int64_t pairs = blocks * panel_block / 2;
  const int32_t* rows[8];
  const float* scales[8];
  for (int r = 0; r < count; ++r) {
    const int64_t row = a.row(first + r);
    rows[r] = reinterpret_cast<const int32_t*>(a.x.q) + row * pairs;
    scales[r] = a.x.q_scale + row * blocks;
  }
  if (count == 1) {
    return {rows[0], scales[0]};
  }
  auto* x = reinterpret_cast<int32_t*>(to);
  auto* scale = reinterpret_cast<float*>(x + pairs * count);
  interleave_rows(rows, count, pairs, x);
  interleave_rows(scales, count, blocks, scale);
  return {x, scale};
}

void matmul_i16(const MatmulArgs& a) {
  const int64_t row_bytes = panel_blocks(a.w.cols) * (panel_block * 2 + 4);
  constexpr int max_groups = 32;
  RowGroup groups[max_groups];
  for (int64_t first = 0; first < a.rows;) {
    // As many groups as the scratch holds; rows too long for it go one by one.
    int64_t used = 0;
    int count = 0;
    while (first < a.rows && count < max_groups) {
      int rows = rows_of_group(a.rows - first);
      if (rows > 1 && rows * row_bytes > matmul_scratch) {
        rows = 1;
      }
      if (rows > 1 && used + rows * row_bytes > matmul_scratch) {
        break;
      }
      groups[count++] = {first, rows, gather_rows(a, first, rows, a.scratch + used)};
      used += rows > 1 ? rows * row_bytes : 0;
      first += rows;
    }
    if (a.w.format == WeightFormat::mxfp4) {
      panels_i16<WeightFormat::mxfp4>(a, groups, count);
    } else if (a.w.format == WeightFormat::q8_0) {
      panels_i16<WeightFormat::q8_0>(a, groups, count);
    } else {
      panels_i16<WeightFormat::q8>(a, groups, count);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu
