// experts, many pairs per expert, on any chip: mma.sync with the weights as operand A, unpacked
// from registers, and rows of x as operand B from shared memory.
#include "cuda/experts.cuh"

namespace gptoss::cuda {

namespace {

constexpr int warps = 4;
constexpr int threads = warps * warp_size;
constexpr int tiles_w = 2;  // of a warp, 16 rows each
constexpr int block_w = warps * tiles_w;
constexpr int block_x = 64;  // rows of x
constexpr int tiles_x = block_x / 8;
using Rows = RowStages<block_x, threads, 4>;

__global__ void __launch_bounds__(threads) tiles_kernel(ExpertArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  const ExpertRows rows(a, static_cast<int>(blockIdx.y), block_x);
  if (rows.none()) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int tiles = a.n / tile_rows, chunks = chunks_of(a.k);
  const int first_tile = static_cast<int>(blockIdx.x) * block_w + warp * tiles_w;

  const Rows x(a, rows, shared);
  const auto load_w = [&](int tile, int chunk) {
    return first_tile + tile < tiles && chunk < chunks
               ? load_chunk(a, chunk_index(rows.expert, first_tile + tile, chunk, a.n, a.k))
               : Chunk{};
  };

  Chunk next[tiles_w];
  GPTOSS_UNROLL
  for (int i = 0; i < tiles_w; ++i) {
    next[i] = load_w(i, 0);
  }
  for (int chunk = 0; chunk < Rows::stages - 1; ++chunk) {
    x.load(chunk);
  }
  float sum[tiles_w][tiles_x][4] = {};
  for (int chunk = 0; chunk < chunks; ++chunk) {
    Chunk now[tiles_w];
    GPTOSS_UNROLL
    for (int i = 0; i < tiles_w; ++i) {
      now[i] = next[i];
      next[i] = load_w(i, chunk + 1);
    }
    wait_for_copies<Rows::stages - 2>();
    __syncthreads();
    x.load(chunk + Rows::stages - 1);
    const unsigned char* stage = x.stage(chunk);
    GPTOSS_UNROLL
    for (int step = 0; step < 4; ++step) {
      uint32_t w[tiles_w][4];
      GPTOSS_UNROLL
      for (int i = 0; i < tiles_w; ++i) {
        unpack_step(now[i], step, w[i]);
      }
      GPTOSS_UNROLL
      for (int j = 0; j < tiles_x; j += 2) {
        uint32_t b[4];
        load_matrices(b, stage + swizzled(j * 8 + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2,
                                          Rows::pieces));
        GPTOSS_UNROLL
        for (int i = 0; i < tiles_w; ++i) {
          multiply_add(sum[i][j], w[i], b);
          multiply_add(sum[i][j + 1], w[i], b + 2);
        }
      }
    }
  }
  wait_for_copies<0>();
  GPTOSS_UNROLL
  for (int i = 0; i < tiles_w; ++i) {
    GPTOSS_UNROLL
    for (int j = 0; j < tiles_x; ++j) {
      GPTOSS_UNROLL
      for (int second = 0; second < 2; ++second) {
        const int row = rows.first + j * 8 + lane % 4 * 2 + second;
        if (row < rows.end && first_tile + i < tiles) {
          put_sums(a, rows.expert, first_tile + i, lane / 4, row, sum[i][j][second],
                   sum[i][j][second + 2]);
        }
      }
    }
  }
}

}  // namespace

void experts_tiles(const ExpertArgs& a, const Stream& stream) {
  launch({"experts_tiles", {a.pairs, a.experts, a.n, a.k}}, tiles_kernel,
         {(a.n / tile_rows + block_w - 1) / block_w, max_expert_tiles(a, block_x), 1}, threads,
         Rows::stages * Rows::bytes, stream, a);
}

}  // namespace gptoss::cuda
