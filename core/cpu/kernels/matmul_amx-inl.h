// matmul_bf16 with AMX tiles (amx.cpp), or with tiles in plain C++ (amx_emulated.cpp).
//
// Two panels by two operand tiles: four C tiles (0 … 3), A in 4 and 5, B in 6 and 7. A block of 32
// columns is four loads of 1 KiB and four products, 64 cycles of the tile unit, of which the loads
// need half where A and B lie in the first-level cache. So:
// - Weights are decoded a piece (two panels by ten blocks) ahead into one of two buffers of 20 KiB,
//   which stay in the first-level cache: one block of one panel after every four products, some 70
//   vector instructions, 40 cycles of two ports, while the tile unit is busy. From 64 operand rows
//   on, all decoding is hidden in this way.
// - The operand comes from the second-level cache at 32 bytes a cycle, half of what that gives, and
//   is prefetched a block ahead. What does not stay there is gone through in stretches of ten
//   blocks, each over all panels of the task.
// - Sums wait in y between stretches.
#pragma once

#include <string.h>

#include "core/cpu/kernels/amx_tiles-inl.h"
#include "core/cpu/kernels/decode_bf16-inl.h"
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {
namespace {

constexpr int64_t amx_stretch = 10;  // blocks of columns
constexpr int64_t amx_panels = 2;
constexpr int64_t amx_buffer = amx_panels * amx_stretch * bf16_block_bytes;
constexpr int64_t amx_rows = 512;                     // operand rows at a time
constexpr int64_t amx_resident = int64_t{768} << 10;  // bytes of operand kept in the cache
constexpr int64_t c_tile_bytes = tile_rows * tile_row_bytes;
static_assert(2 * amx_buffer + c_tile_bytes <= matmul_scratch);
static_assert(tile_rows == operand_tile_rows && tile_rows == panel_rows &&
              tile_row_bytes == panel_rows * 4);
static_assert(amx_rows % (2 * tile_rows) == 0);

// What is multiplied at a time: P panels by a stretch of columns.
struct Piece {
  int64_t panel;          // the first of them
  int64_t block, blocks;  // of columns
};

// All pieces of `groups` times P panels, in the order of their multiplication.
template <int P>
struct Pieces {
  int64_t first_panel, groups;
  int64_t blocks, stretches;
  bool by_panel;  // all stretches of one group before the next group

  GPTOSS_INLINE int64_t count() const { return groups * stretches; }
  GPTOSS_INLINE Piece operator[](int64_t i) const {
    const int64_t group = by_panel ? i / stretches : i % groups;
    const int64_t block = (by_panel ? i % stretches : i / groups) * amx_stretch;
    const int64_t left = blocks - block;
    return {first_panel + group * P, block, left < amx_stretch ? left : amx_stretch};
  }
};

// A tile of A or B.
GPTOSS_INLINE void prefetch_block(const void* from) {
  for (int64_t i = 0; i < bf16_block_bytes; i += 64) {
    __builtin_prefetch(static_cast<const uint8_t*>(from) + i);
  }
}

// Brings a piece's weights near, a block at a time, while another piece is multiplied: decodes them
// to a buffer, or prefetches them where they can be used as they lie.
template <WeightFormat format, int P>
struct Ahead {
  static constexpr bool in_place = format == WeightFormat::bf16;
  static constexpr int64_t block_bytes = in_place                        ? bf16_block_bytes
                                         : format == WeightFormat::mxfp4 ? bf16_block_bytes / 4
                                                                         : bf16_block_bytes / 2;
  static constexpr int64_t scale_bytes = in_place                        ? 0
                                         : format == WeightFormat::mxfp4 ? panel_rows
                                                                         : panel_rows * 2;
  // The piece as bf16, once every step is done: blocks of a panel one after another, its panels
  // weight_stride bytes apart.
  const uint8_t* weights;
  int64_t weight_stride;

  const uint8_t* block;   // what comes next
  const uint8_t* scales;  // its own
  uint8_t* out;
  int64_t blocks, blocks_left, panels_left;
  int64_t panel_stride;
  __m512i table;

  GPTOSS_INLINE Ahead(const Panels& w, const Piece& piece, uint8_t* buffer)
      : out(buffer),
        blocks(piece.blocks),
        blocks_left(piece.blocks),
        panels_left(P),
        panel_stride(panel_bytes(format, w.cols)),
        table(e2m1_bf16_table()) {
    const uint8_t* panel = w.data + piece.panel * panel_stride;
    block = panel + piece.block * block_bytes;
    scales = panel + panel_blocks(w.cols) * block_bytes + piece.block * scale_bytes;
    weights = in_place ? block : out;
    weight_stride = in_place ? panel_stride : amx_stretch * bf16_block_bytes;
  }

  GPTOSS_INLINE bool step() {
    if (panels_left == 0) {
      return false;
    }
    if constexpr (format == WeightFormat::mxfp4) {
      decode_mxfp4(table, block, scales, out);
    } else if constexpr (format == WeightFormat::q8 || format == WeightFormat::q8_0) {
      decode_q8<format>(block, scales, out);
    } else {
      prefetch_block(block);
    }
    block += block_bytes;
    scales += scale_bytes;
    out += bf16_block_bytes;
    if (--blocks_left == 0) {
      block += panel_stride - blocks * block_bytes;
      scales += panel_stride - blocks * scale_bytes;
      out += (amx_stretch - blocks) * bf16_block_bytes;
      blocks_left = blocks;
      --panels_left;
    }
    return true;
  }
};

// Between y and a whole tile in memory, for tiles that stick out of y.
struct Edge {
  float* y;
  int64_t stride;  // floats
  int64_t rows, cols;
};
__attribute__((noinline)) void read_edge(const Edge& e, float* whole) {
  memset(whole, 0, c_tile_bytes);
  for (int64_t r = 0; r < e.rows; ++r) {
    memcpy(whole + r * panel_rows, e.y + r * e.stride, static_cast<size_t>(e.cols) * sizeof(float));
  }
}
__attribute__((noinline)) void write_edge(const Edge& e, const float* whole) {
  for (int64_t r = 0; r < e.rows; ++r) {
    memcpy(e.y + r * e.stride, whole + r * panel_rows, static_cast<size_t>(e.cols) * sizeof(float));
  }
}

// One C tile's part of y.
struct OutputTile {
  Edge part;
  float* buffer;  // (16, 16)

  GPTOSS_INLINE OutputTile(const MatmulArgs& a, int64_t row, int64_t panel) {
    const int64_t n = panel * panel_rows;
    const int64_t rows = a.rows - row, cols = a.w.rows - n;
    part = {a.y + row * a.y_stride + n, a.y_stride, rows < tile_rows ? rows : tile_rows,
            cols < panel_rows ? cols : panel_rows};
    buffer = reinterpret_cast<float*>(a.scratch + 2 * amx_buffer);
  }
  GPTOSS_INLINE bool whole() const { return part.rows == tile_rows && part.cols == panel_rows; }

  // From y, or before the first stretch every row from the bias (panel_rows).
  template <class Tiles, int tile>
  GPTOSS_INLINE void load(const float* bias) const {
    if (bias != nullptr) {
      Tiles::template load<tile>(bias, 0);
    } else if (whole()) {
      Tiles::template load<tile>(part.y, part.stride * 4);
    } else {
      read_edge(part, buffer);
      Tiles::template load<tile>(buffer, tile_row_bytes);
    }
  }
  template <class Tiles, int tile>
  GPTOSS_INLINE void store() const {
    if (whole()) {
      Tiles::template store<tile>(part.y, part.stride * 4);
    } else {
      Tiles::template store<tile>(buffer, tile_row_bytes);
      write_edge(part, buffer);
    }
  }
};

// C (T operand tiles, P panels) += A · B over `count` blocks.
template <class Tiles, WeightFormat format, int P, int T>
GPTOSS_INLINE void multiply_blocks(const bf16* x, int64_t tile_size, const uint8_t* weights,
                                   int64_t weight_stride, int64_t count, Ahead<format, P>& ahead) {
  constexpr int64_t block_size = panel_rows * panel_block;
  const bf16* x_second = x + tile_size;
  const uint8_t* weights_second = weights + weight_stride;
  for (int64_t b = 0; b < count; ++b) {
    Tiles::template load<6>(weights, tile_row_bytes);
    Tiles::template load<4>(x, tile_row_bytes);
    Tiles::template dot<0, 4, 6>();
    weights += bf16_block_bytes;
    x += block_size;
    prefetch_block(x);
    if constexpr (P == 2) {
      Tiles::template load<7>(weights_second, tile_row_bytes);
      Tiles::template dot<1, 4, 7>();
      weights_second += bf16_block_bytes;
    }
    if constexpr (T == 2) {
      Tiles::template load<5>(x_second, tile_row_bytes);
      Tiles::template dot<2, 5, 6>();
      x_second += block_size;
      asm("" : "+r"(x_second));  // or GCC derives each address of the prefetch from x
      prefetch_block(x_second);
    }
    if constexpr (P == 2 && T == 2) {
      Tiles::template dot<3, 5, 7>();
    }
    ahead.step();
  }
}

// T operand tiles from row `row` on times one piece. bias: (P, panel_rows), or null after the first
// stretch.
template <class Tiles, WeightFormat format, int P, int T>
GPTOSS_INLINE void multiply_piece(const MatmulArgs& a, const Piece& piece, int64_t row,
                                  const float* bias, const Ahead<format, P>& current,
                                  Ahead<format, P>& next) {
  const int64_t tile_size = panel_cols(a.w.cols) * tile_rows;
  const bf16* x = a.x.tiles + (a.first_row + row) / tile_rows * tile_size +
                  piece.block * tile_rows * panel_block;
  const float* bias_second = bias != nullptr ? bias + panel_rows : nullptr;
  const OutputTile c0(a, row, piece.panel), c1(a, row, piece.panel + P - 1);
  const OutputTile c2(a, row + tile_rows, piece.panel), c3(a, row + tile_rows, piece.panel + P - 1);
  c0.load<Tiles, 0>(bias);
  if constexpr (P == 2) {
    c1.load<Tiles, 1>(bias_second);
  }
  if constexpr (T == 2) {
    c2.load<Tiles, 2>(bias);
  }
  if constexpr (P == 2 && T == 2) {
    c3.load<Tiles, 3>(bias_second);
  }
  multiply_blocks<Tiles, format, P, T>(x, tile_size, current.weights, current.weight_stride,
                                       piece.blocks, next);
  c0.store<Tiles, 0>();
  if constexpr (P == 2) {
    c1.store<Tiles, 1>();
  }
  if constexpr (T == 2) {
    c2.store<Tiles, 2>();
  }
  if constexpr (P == 2 && T == 2) {
    c3.store<Tiles, 3>();
  }
}

template <int P>
GPTOSS_INLINE void bias_of(const Panels& w, int64_t panel, float* bias) {
  for (int64_t i = 0; i < P * panel_rows; ++i) {
    const int64_t n = panel * panel_rows + i;
    bias[i] = w.bias != nullptr && n < w.rows ? to_float(w.bias[n]) : 0.0f;
  }
}

// Rows [row, row + rows) of y for `groups` times P panels.
template <class Tiles, WeightFormat format, int P>
void multiply_panels(const MatmulArgs& a, int64_t panel, int64_t groups, int64_t row,
                     int64_t rows) {
  const int64_t blocks = panel_blocks(a.w.cols);
  const bool by_panel = rows * blocks * panel_block * 2 <= amx_resident;
  const Pieces<P> pieces{panel, groups, blocks, (blocks + amx_stretch - 1) / amx_stretch, by_panel};
  const auto ahead_of = [&](int64_t i) {
    return Ahead<format, P>(a.w, pieces[i], a.scratch + i % 2 * amx_buffer);
  };
  auto current = ahead_of(0);
  while (current.step()) {
  }
  for (int64_t i = 0; i < pieces.count(); ++i) {
    const Piece piece = pieces[i];
    const bool last = i + 1 == pieces.count();
    auto next = ahead_of(last ? i : i + 1);
    if (last) {
      next.panels_left = 0;
    }
    alignas(64) float bias[P * panel_rows];
    const bool first = piece.block == 0;
    if (first) {
      bias_of<P>(a.w, piece.panel, bias);
    }
    int64_t r = row;
    for (; r + tile_rows < row + rows; r += 2 * tile_rows) {
      multiply_piece<Tiles, format, P, 2>(a, piece, r, first ? bias : nullptr, current, next);
    }
    if (r < row + rows) {
      multiply_piece<Tiles, format, P, 1>(a, piece, r, first ? bias : nullptr, current, next);
    }
    while (next.step()) {
    }
    current = next;
  }
}

template <class Tiles, WeightFormat format>
GPTOSS_INLINE void multiply_format(const MatmulArgs& a) {
  const int64_t groups = (a.end - a.begin) / amx_panels;
  const int64_t odd = a.begin + groups * amx_panels;
  for (int64_t row = 0; row < a.rows; row += amx_rows) {
    const int64_t rows = a.rows - row < amx_rows ? a.rows - row : amx_rows;
    if (groups > 0) {
      multiply_panels<Tiles, format, amx_panels>(a, a.begin, groups, row, rows);
    }
    if (odd < a.end) {
      multiply_panels<Tiles, format, 1>(a, odd, 1, row, rows);
    }
  }
}

template <class Tiles>
void matmul_amx(const MatmulArgs& a) {
  Tiles::configure(all_tiles_whole());
  switch (a.w.format) {
    case WeightFormat::bf16:
      multiply_format<Tiles, WeightFormat::bf16>(a);
      break;
    case WeightFormat::mxfp4:
      multiply_format<Tiles, WeightFormat::mxfp4>(a);
      break;
    case WeightFormat::q8:
      multiply_format<Tiles, WeightFormat::q8>(a);
      break;
    case WeightFormat::q8_0:
      multiply_format<Tiles, WeightFormat::q8_0>(a);
      break;
  }
  Tiles::release();
}

}  // namespace
}  // namespace gptoss::cpu
