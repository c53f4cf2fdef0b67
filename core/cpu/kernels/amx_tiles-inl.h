// The tile registers of Intel's Advanced Matrix Extensions: the only assembly of the AMX kernels,
// and the same operations in plain C++ for machines without them.
//
// Eight tiles of 16 rows by 64 bytes. A: 16 rows of 32 bf16. B: 16 pairs of rows, 16 columns of two
// bf16. C: 16 by 16 float32. (Intel 64 and IA-32 Architectures Software Developer's Manual, volume
// 1, chapter 18; TDPBF16PS in volume 2.)
#pragma once

#include <math.h>
#include <string.h>

#include "core/dtype.h"

namespace gptoss::cpu {
namespace {

constexpr int tile_rows = 16;
constexpr int tile_row_bytes = 64;
constexpr int tile_count = 8;

// Palette 1: how many rows and bytes a row each tile has.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

GPTOSS_INLINE TileConfig all_tiles_whole() {
  TileConfig config;
  for (int t = 0; t < tile_count; ++t) {
    config.row_bytes[t] = tile_row_bytes;
    config.rows[t] = tile_rows;
  }
  return config;
}

#ifdef GPTOSS_AMX
// Written as assembly because the intrinsics of GCC 12 tell the compiler too little: it may drop
// the stores into a configuration before it is loaded.
struct HardwareTiles {
  static GPTOSS_INLINE void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  static GPTOSS_INLINE void release() { asm volatile("tilerelease" : : : "memory"); }
  template <int tile>
  static GPTOSS_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(tile));
  }
  // 16 rows of 64 bytes, `stride` bytes apart.
  template <int tile>
  static GPTOSS_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
  }
  template <int tile>
  static GPTOSS_INLINE void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
  }
  // C += A · B
  template <int c, int a, int b>
  static GPTOSS_INLINE void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};
#endif

#ifdef GPTOSS_AMX_EMULATED
// Slow; for tests. What the hardware refuses ends the process, too.
struct EmulatedTiles {
  struct State {
    bool configured = false;
    TileConfig config;
    uint8_t bytes[tile_count][tile_rows][tile_row_bytes];
  };
  static State& state() {
    static thread_local State of_thread;
    return of_thread;
  }
  static void require(bool condition) {
    if (!condition) {
      __builtin_trap();
    }
  }

  static void configure(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (const uint8_t byte : config.reserved) {
      require(byte == 0);
    }
    for (int t = 0; t < 16; ++t) {
      const bool used = config.rows[t] != 0;
      require(used == (config.row_bytes[t] != 0) && (t < tile_count || !used));
      require(config.rows[t] <= tile_rows && config.row_bytes[t] <= tile_row_bytes);
    }
    memset(state().bytes, 0, sizeof state().bytes);
    state().configured = true;
    state().config = config;
  }
  static void release() { state().configured = false; }

  static int rows(int tile) {
    require(state().configured && state().config.rows[tile] != 0);
    return state().config.rows[tile];
  }
  static int row_bytes(int tile) { return state().config.row_bytes[tile]; }

  template <int tile>
  static void zero() {
    rows(tile);
    memset(state().bytes[tile], 0, sizeof state().bytes[tile]);
  }
  template <int tile>
  static void load(const void* from, int64_t stride) {
    zero<tile>();
    for (int r = 0; r < rows(tile); ++r) {
      memcpy(state().bytes[tile][r], static_cast<const uint8_t*>(from) + r * stride,
             static_cast<size_t>(row_bytes(tile)));
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < rows(tile); ++r) {
      memcpy(static_cast<uint8_t*>(to) + r * stride, state().bytes[tile][r],
             static_cast<size_t>(row_bytes(tile)));
    }
  }

  static float flushed(float x) {
    return (float_to_bits(x) & 0x7f800000u) == 0 ? bits_to_float(float_to_bits(x) & 0x80000000u)
                                                 : x;
  }
  static float element(int tile, int row, int i) {
    bf16 value;
    memcpy(&value, &state().bytes[tile][row][i * 2], sizeof value);
    return flushed(to_float(value));
  }
  // Even and odd elements of a row are summed apart, by fused multiply-adds to nearest even;
  // subnormal numbers are zero on the way in and out.
  template <int c, int a, int b>
  static void dot() {
    static_assert(a != b && a != c && b != c);
    require(rows(c) == rows(a) && row_bytes(c) == row_bytes(b) && row_bytes(a) == 4 * rows(b));
    for (int m = 0; m < rows(c); ++m) {
      for (int n = 0; n < row_bytes(c) / 4; ++n) {
        float even = 0.0f, odd = 0.0f;
        for (int k = 0; k < rows(b); ++k) {
          even = flushed(fmaf(element(a, m, 2 * k), element(b, k, 2 * n), even));
          odd = flushed(fmaf(element(a, m, 2 * k + 1), element(b, k, 2 * n + 1), odd));
        }
        uint8_t* at = &state().bytes[c][m][n * 4];
        float sum;
        memcpy(&sum, at, sizeof sum);
        sum = flushed(flushed(sum) + flushed(even + odd));
        memcpy(at, &sum, sizeof sum);
      }
    }
  }
};
#endif

}  // namespace
}  // namespace gptoss::cpu
