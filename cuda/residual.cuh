// The residual stream of a row, with what other kernels have left to be added to it.
#pragma once

#include "cuda/kernels.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

// The row as it is now, in `x` (n, shared memory) and, if it changed and may be stored, in place.
// Returns 1 / √(mean x² + eps). All threads of the block call it; sums: a float for each warp.
template <int threads>
__device__ inline float load_row(const Residual& a, int row, int n, float eps, float* x,
                                 float* sums) {
  float* from = a.x + static_cast<int64_t>(row) * n;
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int i = thread; i < n; i += threads) {
    float value = from[i];
    if (a.partial != nullptr) {
      value += a.partial[static_cast<int64_t>(row) * n + i];
    }
    if (a.expert_out != nullptr) {
      for (int rank = 0; rank < a.chosen; ++rank) {  // in their order: sums are reproducible
        const int64_t pair = static_cast<int64_t>(row) * a.chosen + rank;
        const int expert_row = a.row_of_pair[pair];
        if (expert_row >= 0) {
          value += a.weights[pair] * a.expert_out[static_cast<int64_t>(expert_row) * n + i];
        }
      }
    }
    if (a.store) {
      from[i] = value;
    }
    x[i] = value;
    sum += value * value;
  }
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (thread % warp_size == 0) {
    sums[thread / warp_size] = sum;
  }
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < threads / warp_size; ++w) {
    total += sums[w];
  }
  return 1.0f / sqrtf(total / static_cast<float>(n) + eps);
}

}  // namespace gptoss::cuda
