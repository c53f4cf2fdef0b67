// experts, many pairs per expert, on Hopper: wgmma with operand A, the weights, unpacked into
// registers (its spread is mma.m16n8k16's, so the packed layout serves both), and rows of x in
// shared memory, gathered by cp.async into the swizzle that wgmma reads. Two blocks share a
// multiprocessor: while the tensor cores work for one, the other unpacks.
#include "cuda/choose.h"
#include "cuda/experts.cuh"
#include "cuda/hopper.h"

namespace gptoss::cuda {

namespace {

constexpr int warps = 8;  // two warpgroups
constexpr int threads = warps * warp_size;
constexpr int block_x = 128;  // rows of x
using Rows = RowStages<block_x, threads, 4>;
static_assert(chunk_columns == tma_columns);

__global__ void __launch_bounds__(threads, 2) hopper_kernel(ExpertArgs a) {
#ifdef GPTOSS_HOPPER
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  const ExpertRows rows(a, static_cast<int>(blockIdx.y), block_x);
  if (rows.none()) {
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int chunks = chunks_of(a.k);
  const int tile = static_cast<int>(blockIdx.x) * warps + warp;
  const bool inside_n = tile < a.n / tile_rows;

  const Rows x(a, rows, shared);
  const auto load_w = [&](int chunk) {
    return inside_n && chunk < chunks
               ? load_chunk(a, chunk_index(rows.expert, tile, chunk, a.n, a.k))
               : Chunk{};
  };

  Chunk next = load_w(0);
  for (int chunk = 0; chunk < Rows::stages - 1; ++chunk) {
    x.load(chunk);
  }
  float sum[block_x / 2];
  uint32_t w[4][4];  // outlives the products that read it
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Chunk now = next;
    next = load_w(chunk + 1);
    wait_for_copies<Rows::stages - 2>();
    wait_for_products<0>();
    // Not while products run: the compiler would make all of them wait for each other.
    GPTOSS_UNROLL
    for (int step = 0; step < 4; ++step) {
      unpack_step(now, step, w[step]);
    }
    publish_to_products();
    __syncthreads();  // x has come for all, and nobody needs the stage that is filled next
    x.load(chunk + Rows::stages - 1);
    const unsigned char* stage = x.stage(chunk);
    begin_products();
    GPTOSS_UNROLL
    for (int step = 0; step < 4; ++step) {
      multiply_tiles(sum, w[step], operand(stage, step * 16), chunk > 0 || step > 0);
    }
    commit_products();
  }
  wait_for_products<0>();
  wait_for_copies<0>();
  GPTOSS_UNROLL
  for (int i = 0; i < block_x / 2; i += 4) {
    GPTOSS_UNROLL
    for (int second = 0; second < 2; ++second) {
      const int row = rows.first + i / 4 * 8 + lane % 4 * 2 + second;
      if (row < rows.end && inside_n) {
        put_sums(a, rows.expert, tile, lane / 4, row, sum[i + second], sum[i + second + 2]);
      }
    }
  }
#else
  __trap();  // another chip's code: never silently nothing
#endif
}

}  // namespace

void experts_hopper(const ExpertArgs& a, const Stream& stream) {
  GPTOSS_CHECK(stream.device.major == 9,
               "experts_hopper: expected compute capability 9, found {}.{}", stream.device.major,
               stream.device.minor);
  launch({"experts_hopper", {a.pairs, a.experts, a.n, a.k}}, hopper_kernel,
         {(a.n / tile_rows + warps - 1) / warps, max_expert_tiles(a, block_x), 1}, threads,
         Rows::stages * Rows::bytes, stream, a);
}

void experts(const ExpertArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.pairs > 0 && a.experts > 0 && a.n > 0 && a.n % tile_rows == 0 && a.k > 0 &&
                   a.k % mx_block == 0,
               "experts: expected positive sizes, n a multiple of {}, k of {}, found {} pairs, {} "
               "experts of [{}, {}]",
               tile_rows, mx_block, a.pairs, a.experts, a.n, a.k);
  switch (expert_product_for(a.pairs, a.experts, a.k, stream.device.major)) {
    case ExpertProduct::few_rows:
      return experts_few(a, stream);
    case ExpertProduct::tiles:
      return experts_tiles(a, stream);
    case ExpertProduct::hopper:
      return experts_hopper(a, stream);
  }
}

}  // namespace gptoss::cuda
