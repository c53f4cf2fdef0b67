// expert_gate_up, expert_down: tile_gemm.cuh on the rows of one expert a block; weights are
// unpacked from MXFP4 on the way to shared memory, one block of 32 a stage and row.
#include "kernels.h"
#include "tile_gemm.cuh"

namespace gptoss::cuda {

namespace {

struct Launch {
  ExpertArgs a;
  float limit;  // of swiglu
  bf16* h;      // swiglu's result, or null:
  float* y;
};

// Four bytes of codes → 16 bytes of a stage.
__device__ inline void unpack_piece(unsigned char* to, uint32_t codes, float scale) {
  bf16 eight[8];
  GPTOSS_UNROLL
  for (int i = 0; i < 8; ++i) {
    eight[i] = to_bf16(e2m1_to_float(codes >> (4 * i) & 15u) * scale);
  }
  memcpy(to, eight, sizeof eight);
}

__device__ inline float swiglu(float glu, float linear, float limit) {
  // Comparisons written so that a NaN passes through and is seen.
  glu = glu > limit ? limit : glu;
  linear = linear > limit ? limit : linear < -limit ? -limit : linear;
  return glu / (1.0f + expf(-1.702f * glu)) * (linear + 1.0f);
}

template <class T>
__global__ void __launch_bounds__(T::threads) expert_kernel(Launch l) {
  GPTOSS_SHARED(shared);
  const ExpertArgs& a = l.a;
  // Which expert's which rows: blocks in y are experts' tiles one after the other.
  int expert = 0, tile = static_cast<int>(blockIdx.y);
  for (; expert < a.experts; ++expert) {
    const int tiles = (a.start[expert + 1] - a.start[expert] + T::block_m - 1) / T::block_m;
    if (tile < tiles) {
      break;
    }
    tile -= tiles;
  }
  if (expert == a.experts) {
    return;  // the grid is as large as the worst case
  }
  const int first_row = a.start[expert] + tile * T::block_m;
  const int end_row = a.start[expert + 1];
  const int first_n = static_cast<int>(blockIdx.x) * T::block_n;
  const int blocks_a_row = a.k / stage_columns;
  const int64_t first_weight = static_cast<int64_t>(expert) * a.n + first_n;

  float sum[T::tiles_m][T::tiles_n][4] = {};
  multiply_tile<T>(
      a.k, shared,
      [&](unsigned char* stage, int column) {
        for (int i = static_cast<int>(threadIdx.x); i < T::block_m * pieces; i += T::threads) {
          const int row = i / pieces, piece = i % pieces;
          const bool inside = first_row + row < end_row;
          int64_t of_x = inside ? first_row + row : 0;
          if (inside && a.pair_of_row != nullptr) {
            of_x = a.pair_of_row[of_x] / a.pairs_a_row;
          }
          load_piece(stage, row, piece, a.x + of_x * a.k + column + piece * 8, a.x, inside);
        }
      },
      [&](unsigned char* stage, int column) {
        for (int i = static_cast<int>(threadIdx.x); i < T::block_n * pieces; i += T::threads) {
          const int row = i / pieces, piece = i % pieces;
          uint32_t codes = 0;
          float scale = 0.0f;
          if (first_n + row < a.n) {
            const int64_t block = (first_weight + row) * blocks_a_row + column / stage_columns;
            memcpy(&codes, a.blocks + block * 16 + piece * 4, sizeof codes);
            scale = e8m0_to_float(a.scales[block]);
          }
          unpack_piece(stage + piece_offset(row, piece), codes, scale);
        }
      },
      sum);
  for_each_pair<T>(sum, [&](int row, int column, float first, float second) {
    row += first_row;
    column += first_n;
    if (row >= end_row || column >= a.n) {
      return;
    }
    const bf16* bias = a.bias + static_cast<int64_t>(expert) * a.n + column;
    first += to_float(bias[0]);
    second += to_float(bias[1]);
    if (l.h != nullptr) {
      l.h[static_cast<int64_t>(row) * (a.n / 2) + column / 2] =
          to_bf16(swiglu(first, second, l.limit));
    } else {
      float* to = l.y + static_cast<int64_t>(row) * a.n + column;
      to[0] = first;
      to[1] = second;
    }
  });
}

template <class T>
void run(const char* name, const Launch& l, Stream stream) {
  const int tiles = l.a.pairs / T::block_m + (l.a.pairs < l.a.experts ? l.a.pairs : l.a.experts);
  const Index grid{(l.a.n + T::block_n - 1) / T::block_n, tiles, 1};
  launch(format("{} [{}, {}] x {} x [{}, {}]", name, l.a.pairs, l.a.k, l.a.experts, l.a.n, l.a.k),
         expert_kernel<T>, grid, T::threads, T::shared_bytes, stream, l);
}

void choose(const char* name, const Launch& l, Stream stream) {
  const ExpertArgs& a = l.a;
  GPTOSS_CHECK(a.pairs > 0 && a.experts > 0 && a.n > 0 && a.n % 2 == 0 && a.k > 0 &&
                   a.k % stage_columns == 0,
               "{}: expected positive sizes, an even n, k a multiple of 32, found {} pairs, {} "
               "experts of [{}, {}]",
               name, a.pairs, a.experts, a.n, a.k);
  if (a.pairs <= 16 * a.experts) {
    run<Tile<16, 64, 16, 16>>(name, l, stream);
  } else {
    run<Tile<64, 64, 32, 32>>(name, l, stream);
  }
}

}  // namespace

void expert_gate_up(const ExpertArgs& a, float limit, bf16* h, Stream stream) {
  choose("expert_gate_up", {a, limit, h, nullptr}, stream);
}

void expert_down(const ExpertArgs& a, float* y, Stream stream) {
  choose("expert_down", {a, 0.0f, nullptr, y}, stream);
}

}  // namespace gptoss::cuda
