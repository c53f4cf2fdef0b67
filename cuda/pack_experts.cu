// pack_experts: from the published layout to layout.h's, a warp for each chunk. unpack_mxfp4: to
// bf16, a thread for each four bytes.
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

namespace {

constexpr int warps = 8;
constexpr int threads = warps * warp_size;
constexpr int words_a_block = 4;

__global__ void __launch_bounds__(threads) pack_kernel(PackArgs a) {
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int64_t index =
      static_cast<int64_t>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / warp_size;
  const int chunks = chunks_of(a.columns), tiles = a.rows / tile_rows;
  if (index >= static_cast<int64_t>(a.experts) * tiles * chunks) {
    return;
  }
  const int chunk = static_cast<int>(index % chunks);
  const int tile = static_cast<int>(index / chunks % tiles);
  const int64_t expert = index / chunks / tiles;
  const int64_t first_row = expert * a.rows;
  const int blocks = a.columns / mx_block;
  Words words;
  GPTOSS_UNROLL
  for (int step = 0; step < 4; ++step) {
    uint8_t codes[8] = {};
    GPTOSS_UNROLL
    for (int i = 0; i < 8; i += 2) {
      const Place place = place_of(lane, step, i);
      const int column = chunk * chunk_columns + place.column;
      if (column < a.columns) {
        const int64_t row = first_row + source_row(tile, place.row, a.paired);
        const uint8_t both =
            a.blocks[(row * blocks + column / mx_block) * mx_block_bytes + column % mx_block / 2];
        codes[i] = both & 15;
        codes[i + 1] = both >> 4;
      }
    }
    words.word[step] = pack_codes(codes);
  }
  store_aligned(a.codes + index * chunk_bytes + lane * 16, &words);
  const int row = lane / 2, half = lane % 2, block = chunk * 2 + half;
  constexpr uint8_t one = 127;
  a.packed_scales[index * chunk_scales + scale_place(row, half)] =
      block < blocks ? a.scales[(first_row + source_row(tile, row, a.paired)) * blocks + block]
                     : one;
}

__global__ void __launch_bounds__(threads) unpack_kernel(UnpackArgs a) {
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= a.count * words_a_block) {
    return;
  }
  uint32_t codes;
  load_aligned(&codes, a.blocks + i * 4);
  const float scale = e8m0_to_float(a.scales[i / words_a_block]);
  bf16* to = a.to + i * 8;
  for (int k = 0; k < 8; ++k) {
    to[k] = to_bf16(e2m1_to_float(codes >> (4 * k) & 15u) * scale);
  }
}

}  // namespace

int64_t packed_bytes(int experts, int rows, int columns) {
  return chunk_index(experts, 0, 0, rows, columns) * chunk_bytes;
}

int64_t packed_scale_bytes(int experts, int rows, int columns) {
  return chunk_index(experts, 0, 0, rows, columns) * chunk_scales;
}

void pack_experts(const PackArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.experts > 0 && a.rows > 0 && a.rows % tile_rows == 0 && a.columns > 0 &&
                   a.columns % mx_block == 0,
               "pack_experts: expected rows a multiple of {}, columns of {}, found {} experts of "
               "[{}, {}]",
               tile_rows, mx_block, a.experts, a.rows, a.columns);
  const int64_t chunks = chunk_index(a.experts, 0, 0, a.rows, a.columns);
  const int64_t blocks = (chunks + warps - 1) / warps;
  GPTOSS_CHECK(blocks < (int64_t{1} << 31), "pack_experts: too many chunks: {}", chunks);
  launch({"pack_experts", {a.experts, a.rows, a.columns}}, pack_kernel,
         {static_cast<int>(blocks), 1, 1}, threads, 0, stream, a);
}

void unpack_mxfp4(const UnpackArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.count > 0, "unpack_mxfp4: expected blocks, found {}", a.count);
  const int64_t blocks = (a.count * words_a_block + threads - 1) / threads;
  GPTOSS_CHECK(blocks < (int64_t{1} << 31), "unpack_mxfp4: too many blocks: {}", a.count);
  launch({"unpack_mxfp4", {a.count}}, unpack_kernel, {static_cast<int>(blocks), 1, 1}, threads, 0,
         stream, a);
}

}  // namespace gptoss::cuda
