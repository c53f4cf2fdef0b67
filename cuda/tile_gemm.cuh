// The tile product that gemm_bf16 and the experts share: mma.sync with operands from shared memory,
// filled ahead by asynchronous copies (sm_80 and later).
//
// A block computes a tile of y, a warp a part of it. Each stage holds 32 columns of x and w; all
// but one stage are under way while that one is multiplied.
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

constexpr int stage_columns = 32;
constexpr int pieces = stage_columns / 8;

template <int m, int n, int of_warp_m, int of_warp_n, int of_stages>
struct Tile {
  static constexpr int block_m = m, block_n = n, warp_m = of_warp_m, warp_n = of_warp_n;
  static constexpr int stages = of_stages;
  static constexpr int warps_n = block_n / warp_n;
  static constexpr int threads = block_m / warp_m * warps_n * warp_size;
  static constexpr int x_bytes = block_m * stage_columns * 2;
  static constexpr int stage_bytes = x_bytes + block_n * stage_columns * 2;
  static constexpr int shared_bytes = stages * stage_bytes;
  static constexpr int tiles_m = warp_m / 16, tiles_n = warp_n / 8;
};

// A piece of bf16 from memory into a stage; zeros where `inside` is false.
__device__ inline void load_piece(unsigned char* stage, int row, int piece, const bf16* from,
                                  const bf16* valid_address, bool inside) {
  copy_async(stage + swizzled(row, piece, pieces), inside ? from : valid_address, inside ? 16 : 0);
}

// sum = x · wᵀ for this warp's part. load_x(stage, column) and load_w(stage, column) fill a stage
// with 32 columns from `column` on.
template <class T, class LoadX, class LoadW>
__device__ inline void multiply_tile(int columns, unsigned char* shared, const LoadX& load_x,
                                     const LoadW& load_w, float (&sum)[T::tiles_m][T::tiles_n][4]) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int warp_row = warp / T::warps_n * T::warp_m;
  const int warp_column = warp % T::warps_n * T::warp_n;
  const int steps = (columns + stage_columns - 1) / stage_columns;
  const auto load = [&](int step) {
    if (step < steps) {
      unsigned char* stage = shared + step % T::stages * T::stage_bytes;
      load_x(stage, step * stage_columns);
      load_w(stage + T::x_bytes, step * stage_columns);
    }
    commit_copies();  // also when empty: groups are counted
  };
  for (int step = 0; step < T::stages - 1; ++step) {
    load(step);
  }
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<T::stages - 2>();
    __syncthreads();  // this stage is complete, and all have left the one that is filled next
    load(step + T::stages - 1);
    const unsigned char* stage_x = shared + step % T::stages * T::stage_bytes;
    const unsigned char* stage_w = stage_x + T::x_bytes;
    GPTOSS_UNROLL
    for (int half = 0; half < stage_columns / 16; ++half) {
      uint32_t x[T::tiles_m][4], w[T::tiles_n][2];
      GPTOSS_UNROLL
      for (int i = 0; i < T::tiles_m; ++i) {
        const int row = warp_row + i * 16 + lane % 16;
        load_matrices(x[i], stage_x + swizzled(row, half * 2 + lane / 16, pieces));
      }
      GPTOSS_UNROLL
      for (int i = 0; i < T::tiles_n; i += 2) {
        const int row = warp_column + i * 8 + lane % 8 + lane / 16 * 8;
        uint32_t four[4];
        load_matrices(four, stage_w + swizzled(row, half * 2 + lane / 8 % 2, pieces));
        w[i][0] = four[0];
        w[i][1] = four[1];
        w[i + 1][0] = four[2];
        w[i + 1][1] = four[3];
      }
      GPTOSS_UNROLL
      for (int i = 0; i < T::tiles_m; ++i) {
        GPTOSS_UNROLL
        for (int j = 0; j < T::tiles_n; ++j) {
          multiply_add(sum[i][j], x[i], w[j]);
        }
      }
    }
  }
  wait_for_copies<0>();
}

// Calls put(row, column, first, second) for each two neighbouring sums of this thread; row and
// column count from the tile's.
template <class T, class Put>
__device__ inline void for_each_pair(const float (&sum)[T::tiles_m][T::tiles_n][4],
                                     const Put& put) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  GPTOSS_UNROLL
  for (int i = 0; i < T::tiles_m; ++i) {
    GPTOSS_UNROLL
    for (int j = 0; j < T::tiles_n; ++j) {
      GPTOSS_UNROLL
      for (int half = 0; half < 2; ++half) {
        put(warp / T::warps_n * T::warp_m + i * 16 + lane / 4 + half * 8,
            warp % T::warps_n * T::warp_n + j * 8 + lane % 4 * 2, sum[i][j][half * 2],
            sum[i][j][half * 2 + 1]);
      }
    }
  }
}

}  // namespace gptoss::cuda
