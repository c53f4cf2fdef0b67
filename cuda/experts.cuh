// What the experts' kernels share: which rows, fragments from MXFP4, what becomes of the sums.
#pragma once

#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

// A word of packed codes → operand A of mma.m16n8k16 as bf16, rounded as the published model's
// own unpacking rounds (docs/spec.md, "MXFP4"). scale[0], scale[1]: of rows g and g + 8,
// scale_pair().
__device__ inline void unpack_fragment(uint32_t word, const uint32_t (&scale)[2],
                                       uint32_t (&a)[4]) {
  constexpr uint32_t two_to_126 = 0x7e807e80u;
  spread_codes(word, a);
  GPTOSS_UNROLL
  for (int i = 0; i < 4; ++i) {
    a[i] = multiply_pairs(multiply_pairs(a[i], two_to_126), scale[i % 2]);
  }
}

// A lane's part of a chunk: 64 columns of 16 rows.
struct Chunk {
  Words codes;
  uint32_t scales;  // bytes: row g first half, second half, row g + 8 first half, second half
};

__device__ inline Chunk load_chunk(const ExpertArgs& a, int64_t index) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Chunk chunk;
  chunk.codes = load_once(a.codes + index * chunk_bytes + lane * 16);
  load_aligned(&chunk.scales, a.scales + index * chunk_scales + lane / 4 * 4);
  return chunk;
}

// Operand A of a chunk's columns 16 · step … + 15.
__device__ inline void unpack_step(const Chunk& chunk, int step, uint32_t (&fragment)[4]) {
  const uint32_t bytes = chunk.scales >> (step / 2 * 8);
  const uint32_t scale[2] = {scale_pair(bytes & 255u), scale_pair(bytes >> 16 & 255u)};
  unpack_fragment(chunk.codes.word[step], scale, fragment);
}

// The row of x that belongs to a row of pairs, which are sorted by expert.
__device__ inline int64_t row_of_x(const ExpertArgs& a, int row) {
  return a.pair_of_row != nullptr ? a.pair_of_row[row] / a.pairs_a_row : row;
}

// Rows first … of expert: the tile'th part of `block` rows, experts one after the other.
struct ExpertRows {
  int expert, first, end;
  __device__ ExpertRows(const ExpertArgs& a, int tile, int block) : expert(0), first(0), end(0) {
    for (; expert < a.experts; ++expert) {
      const int tiles = (a.start[expert + 1] - a.start[expert] + block - 1) / block;
      if (tile < tiles) {
        first = a.start[expert] + tile * block;
        end = a.start[expert + 1];
        return;
      }
      tile -= tiles;
    }
  }
  __device__ bool none() const { return first == end; }
};
// As many as there may be; the surplus ones find no rows.
inline int max_expert_tiles(const ExpertArgs& a, int block) {
  return a.pairs / block + (a.pairs < a.experts ? a.pairs : a.experts);
}

// Copies chunks of a block's rows of x to shared memory, a ring of stages (block_x, 64) in the
// 128-byte swizzle. Each thread always copies the same rows.
template <int block_x, int threads, int of_stages>
class RowStages {
public:
  static constexpr int stages = of_stages;
  static constexpr int pieces = chunk_columns / 8;
  static constexpr int bytes = block_x * chunk_columns * 2;  // of a stage

  __device__ RowStages(const ExpertArgs& a, const ExpertRows& rows, unsigned char* shared)
      : a_(a), shared_(shared) {
    GPTOSS_UNROLL
    for (int i = 0; i < each; ++i) {
      const int row = rows.first + slot(i) / pieces;
      from_[i] = row < rows.end ? a.x + row_of_x(a, row) * a.k : nullptr;
    }
  }

  // Starts copying, and ends a group of copies in any case.
  __device__ void load(int chunk) const {
    if (chunk < chunks_of(a_.k)) {
      GPTOSS_UNROLL
      for (int i = 0; i < each; ++i) {
        const int k = chunk * chunk_columns + slot(i) % pieces * 8;
        const bool inside = from_[i] != nullptr && k < a_.k;
        copy_async(stage(chunk) + swizzled(slot(i) / pieces, slot(i) % pieces, pieces),
                   inside ? from_[i] + k : a_.x, inside ? 16 : 0);
      }
    }
    commit_copies();
  }

  __device__ unsigned char* stage(int chunk) const { return shared_ + chunk % stages * bytes; }

private:
  static constexpr int each = block_x * pieces / threads;
  __device__ static int slot(int i) { return static_cast<int>(threadIdx.x) + i * threads; }

  const ExpertArgs& a_;
  unsigned char* shared_;
  const bf16* from_[each];
};

__device__ inline float swiglu(float glu, float linear, float limit) {
  // Comparisons written so that a NaN passes through and is seen.
  glu = glu > limit ? limit : glu;
  linear = linear > limit ? limit : linear < -limit ? -limit : linear;
  return glu / (1.0f + expf(-1.702f * glu)) * (linear + 1.0f);
}

// Sums of a tile's rows g and g + 8 for one pair (docs/spec.md, "Router and experts").
__device__ inline void put_sums(const ExpertArgs& a, int expert, int tile, int g, int row,
                                float first, float second) {
  const bool paired = a.h != nullptr;
  const int n0 = source_row(tile, g, paired), n8 = source_row(tile, g + 8, paired);
  const bf16* bias = a.bias + static_cast<int64_t>(expert) * a.n;
  first += to_float(bias[n0]);
  second += to_float(bias[n8]);
  if (paired) {
    a.h[static_cast<int64_t>(row) * (a.n / 2) + n0 / 2] = to_bf16(swiglu(first, second, a.limit));
  } else {
    float* to = a.y + static_cast<int64_t>(row) * a.n;
    to[n0] = first;
    to[n8] = second;
  }
}

}  // namespace gptoss::cuda
