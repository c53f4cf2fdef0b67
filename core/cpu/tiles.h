// The tile registers of Intel's Advanced Matrix Extensions: the only assembly of the AMX kernels,
// and the same operations in plain C++ for machines without them.
//
// Eight tiles of 16 rows by 64 bytes. A: 16 rows of 32 bf16. B: 16 pairs of rows, 16 columns of two
// bf16. C: 16 by 16 float32. (Intel 64 and IA-32 Architectures Software Developer's Manual, volume
// 1, chapter 18; TDPBF16PS in volume 2.)
#pragma once

#include <math.h>
#include <string.h>

#include "dtype.h"

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
  static GPTOSS_INLINE void configure() {
    const TileConfig config = all_tiles_whole();
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
// Slow; for tests. Products are rounded as the hardware rounds them: even and odd elements of a row
// apart, fused multiply-add to nearest even, subnormal numbers taken for zero.
struct EmulatedTiles {
  struct Tile {
    uint8_t bytes[tile_rows][tile_row_bytes];
  };
  static Tile* tiles() {
    static thread_local Tile all[tile_count];
    return all;
  }
  static void configure() { memset(tiles(), 0xff, sizeof(Tile) * tile_count); }
  static void release() { memset(tiles(), 0xff, sizeof(Tile) * tile_count); }
  template <int tile>
  static void zero() {
    memset(&tiles()[tile], 0, sizeof(Tile));
  }
  template <int tile>
  static void load(const void* from, int64_t stride) {
    for (int r = 0; r < tile_rows; ++r) {
      memcpy(tiles()[tile].bytes[r], static_cast<const uint8_t*>(from) + r * stride,
             tile_row_bytes);
    }
  }
  template <int tile>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < tile_rows; ++r) {
      memcpy(static_cast<uint8_t*>(to) + r * stride, tiles()[tile].bytes[r], tile_row_bytes);
    }
  }
  static float flushed(float x) {
    return (float_to_bits(x) & 0x7f800000u) == 0 ? bits_to_float(float_to_bits(x) & 0x80000000u)
                                                 : x;
  }
  static float element(const Tile& tile, int row, int i) {
    bf16 value;
    memcpy(&value, tile.bytes[row] + i * 2, sizeof value);
    return flushed(to_float(value));
  }
  template <int c, int a, int b>
  static void dot() {
    for (int m = 0; m < tile_rows; ++m) {
      for (int n = 0; n < tile_row_bytes / 4; ++n) {
        float even = 0.0f, odd = 0.0f;
        for (int k = 0; k < tile_rows; ++k) {
          even = flushed(fmaf(element(tiles()[a], m, 2 * k), element(tiles()[b], k, 2 * n), even));
          odd = flushed(
              fmaf(element(tiles()[a], m, 2 * k + 1), element(tiles()[b], k, 2 * n + 1), odd));
        }
        float sum;
        uint8_t* at = tiles()[c].bytes[m] + n * 4;
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
