// Which kernel with which tiles for which sizes: arithmetic alone, tested on the host.
#pragma once

#include "cuda/layout.h"

namespace gptoss::cuda {

// The tiles of a product (m, n), walked so that blocks which run at the same time share operands
// in the L2 cache: down `band` tiles of m, then the next column.
struct TileGrid {
  static constexpr int band = 8;
  int tiles_m, tiles_n;

  struct Tile {
    int m, n;
  };

  GPTOSS_INLINE TileGrid(int m, int n, int tile_m, int tile_n)
      : tiles_m((m + tile_m - 1) / tile_m), tiles_n((n + tile_n - 1) / tile_n) {}

  GPTOSS_INLINE int count() const { return tiles_m * tiles_n; }

  GPTOSS_INLINE Tile tile(int index) const {
    const int first = index / (band * tiles_n) * band;
    const int rows = tiles_m - first < band ? tiles_m - first : band;
    const int inside = index - first * tiles_n;
    return {first + inside % rows, inside / rows};
  }
};

// gemm_hopper's columns a tile: the fewest rounds over all multiprocessors, where a narrower tile
// counts for more than its width because it reads more for each product.
inline int hopper_tile(int m, int n, int tile_m, int multiprocessors) {
  constexpr int widths[3] = {256, 192, 128};
  int best = 0;
  int64_t least = 0;
  for (const int width : widths) {
    const int64_t rounds =
        (TileGrid(m, n, tile_m, width).count() + multiprocessors - 1) / multiprocessors;
    const int64_t cost = rounds * (width + 32);
    if (best == 0 || cost < least) {
      best = width;
      least = cost;
    }
  }
  return best;
}

// How a product of m rows with a dense matrix is computed.
enum class Product { few_rows, tiles, hopper };
constexpr int gemv_rows = 16;
inline Product product_for(int m, int k, int major, int shared_bytes) {
  const int64_t row_bytes = int64_t{2} * k + 192;  // gemv_bf16 keeps x in shared memory
  if (m <= gemv_rows && m * row_bytes <= shared_bytes) {
    return Product::few_rows;
  }
  return m > 64 && major == 9 ? Product::hopper : Product::tiles;
}

// And with the experts: `pairs` of a token and an expert.
enum class ExpertProduct { few_rows, tiles, hopper };
inline ExpertProduct expert_product_for(int pairs, int experts, int columns, int major) {
  // The operands of a step lie in shared memory whole: 16 rows of them in 99 KB on every chip.
  constexpr int max_columns = 3072;
  if (pairs <= 16 * experts && columns <= max_columns) {
    return ExpertProduct::few_rows;
  }
  return pairs > 32 * experts && major == 9 ? ExpertProduct::hopper : ExpertProduct::tiles;
}

// Over how many blocks the keys of a decoded token are split: enough for two blocks on every
// multiprocessor, but none with less than `least` pages. A power of two, so that a growing context
// changes it seldom.
inline int decode_splits(int tokens, int kv_heads, int max_pages, int multiprocessors) {
  constexpr int least = 16, most = 64;
  int splits = 1;
  while (splits < most && tokens * kv_heads * splits < 2 * multiprocessors &&
         splits * 2 * least <= max_pages) {
    splits *= 2;
  }
  return splits;
}

}  // namespace gptoss::cuda
