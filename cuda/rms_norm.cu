// rms_norm: a block for each row, which it reads twice, the second time from cache.
#include "kernels.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) norm_kernel(NormArgs a) {
  GPTOSS_SHARED(shared);
  auto* of_warp = reinterpret_cast<float*>(shared);  // (warps)
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = a.row_ids != nullptr ? a.row_ids[blockIdx.x] : static_cast<int>(blockIdx.x);
  const float* x = a.x + row * a.n;
  float sum = 0.0f;
  for (int i = thread; i < a.n; i += threads) {
    sum += x[i] * x[i];
  }
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (thread % warp_size == 0) {
    of_warp[thread / warp_size] = sum;
  }
  __syncthreads();
  float total = 0.0f;
  for (int w = 0; w < threads / warp_size; ++w) {
    total += of_warp[w];
  }
  const float factor = 1.0f / sqrtf(total / static_cast<float>(a.n) + a.eps);
  const int64_t to = static_cast<int64_t>(blockIdx.x) * a.n;
  for (int i = thread; i < a.n; i += threads) {
    const float y = x[i] * factor * to_float(a.scale[i]);
    a.y[to + i] = to_bf16(y);
    if (a.unrounded != nullptr) {
      a.unrounded[to + i] = y;
    }
  }
}

}  // namespace

void rms_norm(const NormArgs& a, Stream stream) {
  GPTOSS_CHECK(a.rows > 0 && a.n > 0, "rms_norm: expected positive sizes, found [{}, {}]", a.rows,
               a.n);
  launch(format("rms_norm [{}, {}]", a.rows, a.n), norm_kernel, {a.rows, 1, 1}, threads,
         threads / warp_size * sizeof(float), stream, a);
}

}  // namespace gptoss::cuda
