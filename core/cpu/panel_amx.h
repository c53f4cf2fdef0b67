// matmul_bf16 with AMX tiles (included by kernels_amx.cpp; by kernels_amx_emulated.cpp with tiles
// in plain C++).
//
// Two panels by two operand tiles: four C tiles (0 … 3), A in 4 and 5, B in 6 and 7. A block of 32
// columns is four loads of 1 KiB and four products, 64 cycles of the tile unit, so that the
// operand, which comes from the second-level cache, need only flow at 32 bytes a cycle. Weights are
// decoded a stretch of ten blocks ahead into one of two buffers of 20 KiB, which stay in the
// first-level cache: one block of one panel after every four products, some 60 vector instructions
// that the core executes while the tile unit is busy. Sums wait in y between stretches.
#pragma once

#include "cpu/panel_bf16.h"
#include "cpu/tiles.h"

namespace gptoss::cpu {
namespace {

constexpr int64_t amx_stretch = 10;  // blocks of columns
constexpr int64_t amx_panels = 2;
constexpr int64_t amx_buffer = amx_panels * amx_stretch * bf16_block_bytes;
constexpr int64_t c_tile_bytes = tile_rows * tile_row_bytes;
static_assert(2 * amx_buffer + c_tile_bytes <= matmul_scratch);
static_assert(tile_rows == panel_rows && tile_row_bytes == panel_rows * 4);

// Brings a stretch of P panels near, block by block, while another is multiplied: decodes it to
// `out`, or prefetches it where it can be used as it lies.
template <WeightFormat format, int P>
struct Ahead {
  static constexpr int64_t block_bytes = format == WeightFormat::bf16    ? bf16_block_bytes
                                         : format == WeightFormat::mxfp4 ? bf16_block_bytes / 4
                                                                         : bf16_block_bytes / 2;
  static constexpr int64_t scale_bytes = format == WeightFormat::bf16    ? 0
                                         : format == WeightFormat::mxfp4 ? panel_rows
                                                                         : panel_rows * 2;
  const uint8_t* panel;  // of the first of them
  int64_t panel_stride, all_blocks;
  int64_t first, count;  // blocks of the stretch
  uint8_t* out;          // (P, amx_stretch) blocks of bf16
  __m512i table;
  int64_t p = 0, b = 0;  // what comes next

  GPTOSS_INLINE bool step() {
    if (p == P || count == 0) {
      return false;
    }
    const uint8_t* block = panel + p * panel_stride + (first + b) * block_bytes;
    const uint8_t* scales =
        panel + p * panel_stride + all_blocks * block_bytes + (first + b) * scale_bytes;
    uint8_t* to = out + (p * amx_stretch + b) * bf16_block_bytes;
    if constexpr (format == WeightFormat::mxfp4) {
      decode_mxfp4(table, block, scales, to);
    } else if constexpr (format == WeightFormat::q8) {
      decode_q8(block, scales, to);
    } else {
      for (int64_t i = 0; i < bf16_block_bytes; i += 64) {
        __builtin_prefetch(block + i);
      }
    }
    if (++b == count) {
      b = 0;
      ++p;
    }
    return true;
  }
};

// One C tile's part of y. Tiles that stick out of y go through a buffer.
struct OutputTile {
  float* y;
  int64_t stride;      // floats
  int64_t rows, cols;  // that y has
  float* buffer;       // (16, 16)

  GPTOSS_INLINE bool whole() const { return rows >= tile_rows && cols >= panel_rows; }
  GPTOSS_INLINE bool absent() const { return rows <= 0; }
  GPTOSS_INLINE int64_t used_rows() const { return rows < tile_rows ? rows : tile_rows; }
  GPTOSS_INLINE int64_t used_cols() const { return cols < panel_rows ? cols : panel_rows; }

  // From y, or before the first stretch every row from the bias.
  template <class Tiles, int tile>
  GPTOSS_INLINE void load(const float* bias) const {
    if (bias != nullptr) {
      Tiles::template load<tile>(bias, 0);
    } else if (whole()) {
      Tiles::template load<tile>(y, stride * 4);
    } else if (!absent()) {
      memset(buffer, 0, c_tile_bytes);
      for (int64_t r = 0; r < used_rows(); ++r) {
        memcpy(buffer + r * panel_rows, y + r * stride,
               static_cast<size_t>(used_cols()) * sizeof(float));
      }
      Tiles::template load<tile>(buffer, tile_row_bytes);
    }
  }
  template <class Tiles, int tile>
  GPTOSS_INLINE void store() const {
    if (whole()) {
      Tiles::template store<tile>(y, stride * 4);
    } else if (!absent()) {
      Tiles::template store<tile>(buffer, tile_row_bytes);
      for (int64_t r = 0; r < used_rows(); ++r) {
        memcpy(y + r * stride, buffer + r * panel_rows,
               static_cast<size_t>(used_cols()) * sizeof(float));
      }
    }
  }
};

// C (2 operand tiles, P panels) += A · B over `count` blocks.
template <class Tiles, WeightFormat format, int P>
GPTOSS_INLINE void multiply_stretch(const bf16* x, const bf16* x_next, const uint8_t* weights,
                                    int64_t panel_stride, int64_t count, Ahead<format, P>& ahead) {
  for (int64_t b = 0; b < count; ++b) {
    const uint8_t* w = weights + b * bf16_block_bytes;
    const int64_t at = b * panel_rows * panel_block;
    Tiles::template load<6>(w, tile_row_bytes);
    Tiles::template load<4>(x + at, tile_row_bytes);
    Tiles::template dot<0, 4, 6>();
    if (P == 2) {
      Tiles::template load<7>(w + panel_stride, tile_row_bytes);
      Tiles::template dot<1, 4, 7>();
    }
    Tiles::template load<5>(x_next + at, tile_row_bytes);
    Tiles::template dot<2, 5, 6>();
    if (P == 2) {
      Tiles::template dot<3, 5, 7>();
    }
    ahead.step();
  }
}

template <class Tiles, WeightFormat format, int P>
void amx_panels_at(const MatmulBf16Args& a, int64_t panel) {
  const int64_t bytes = panel_bytes(format, a.w.cols);
  const int64_t blocks = panel_blocks(a.w.cols);
  const int64_t tiles = (a.rows + tile_rows - 1) / tile_rows;
  const int64_t tile_size = blocks * panel_rows * panel_block;
  const uint8_t* panels = a.w.data + panel * bytes;
  constexpr bool in_place = format == WeightFormat::bf16;
  auto* edge = reinterpret_cast<float*>(a.scratch + 2 * amx_buffer);
  alignas(64) float bias[P][panel_rows] = {};
  for (int64_t n = panel * panel_rows; a.w.bias != nullptr && n < (panel + P) * panel_rows; ++n) {
    if (n < a.w.rows) {
      bias[n / panel_rows - panel][n % panel_rows] = to_float(a.w.bias[n]);
    }
  }
  const auto ahead_of = [&](int64_t b) {
    const int64_t left = blocks - b;
    const int64_t count = left < amx_stretch ? left : amx_stretch;
    return Ahead<format, P>{panels,
                            bytes,
                            blocks,
                            b,
                            count > 0 ? count : 0,
                            a.scratch + b / amx_stretch % 2 * amx_buffer,
                            e2m1_bf16_table()};
  };
  auto current = ahead_of(0);
  while (current.step()) {
  }
  for (int64_t b = 0; b < blocks; b += amx_stretch) {
    auto next = ahead_of(b + amx_stretch);
    const uint8_t* weights = in_place ? panels + b * bf16_block_bytes : current.out;
    const int64_t stride = in_place ? bytes : amx_stretch * bf16_block_bytes;
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      const auto output = [&](int64_t t, int64_t p) {
        const int64_t n = (panel + p) * panel_rows;
        return OutputTile{a.y + t * tile_rows * a.y_stride + n, a.y_stride, a.rows - t * tile_rows,
                          a.w.rows - n, edge};
      };
      const OutputTile c0 = output(tile, 0), c1 = output(tile, P - 1);
      const OutputTile c2 = output(tile + 1, 0), c3 = output(tile + 1, P - 1);
      const float* first = b == 0 ? bias[0] : nullptr;
      const float* second = b == 0 ? bias[P - 1] : nullptr;
      c0.load<Tiles, 0>(first);
      c2.load<Tiles, 2>(first);
      if (P == 2) {
        c1.load<Tiles, 1>(second);
        c3.load<Tiles, 3>(second);
      }
      const bf16* x = a.x + tile * tile_size + b * panel_rows * panel_block;
      // An odd last tile is its own neighbour; what that gives is not stored.
      const bf16* x_next = tile + 1 < tiles ? x + tile_size : x;
      multiply_stretch<Tiles, format, P>(x, x_next, weights, stride, current.count, next);
      c0.store<Tiles, 0>();
      c2.store<Tiles, 2>();
      if (P == 2) {
        c1.store<Tiles, 1>();
        c3.store<Tiles, 3>();
      }
    }
    while (next.step()) {
    }
    current = next;
  }
}

template <class Tiles, WeightFormat format>
GPTOSS_INLINE void amx_format(const MatmulBf16Args& a) {
  int64_t p = a.begin;
  for (; p + amx_panels <= a.end; p += amx_panels) {
    amx_panels_at<Tiles, format, 2>(a, p);
  }
  if (p < a.end) {
    amx_panels_at<Tiles, format, 1>(a, p);
  }
}

template <class Tiles>
void matmul_amx(const MatmulBf16Args& a) {
  Tiles::configure();
  switch (a.w.format) {
    case WeightFormat::bf16:
      amx_format<Tiles, WeightFormat::bf16>(a);
      break;
    case WeightFormat::mxfp4:
      amx_format<Tiles, WeightFormat::mxfp4>(a);
      break;
    case WeightFormat::q8:
      amx_format<Tiles, WeightFormat::q8>(a);
      break;
  }
  Tiles::release();
}

#ifdef GPTOSS_AMX
double peak_amx(int64_t rounds) {
  HardwareTiles::configure();
  for (int64_t i = 0; i < rounds; ++i) {
    HardwareTiles::dot<0, 4, 6>();
    HardwareTiles::dot<1, 4, 7>();
    HardwareTiles::dot<2, 5, 6>();
    HardwareTiles::dot<3, 5, 7>();
  }
  HardwareTiles::release();
  return static_cast<double>(rounds) * 4 * 2 * tile_rows * panel_rows * panel_block;
}
#endif

}  // namespace
}  // namespace gptoss::cpu
