// gemv_bf16: a warp for each row of w, which it reads once, 16 bytes a lane; x lies in shared
// memory.
#include "kernels.h"

namespace gptoss::cuda {

namespace {

constexpr int warps = 4;

struct Eight {
  bf16 value[8];
};
struct alignas(16) Packed16 {
  uint32_t words[4];
};

__device__ inline Eight load_eight(const bf16* from) {
  const Packed16 packed = *reinterpret_cast<const Packed16*>(from);
  Eight result;
  memcpy(&result, &packed, sizeof result);
  return result;
}

template <int rows>
__global__ void __launch_bounds__(warps* warp_size) gemv_kernel(GemmArgs a) {
  GPTOSS_SHARED(shared);
  auto* x = reinterpret_cast<bf16*>(shared);  // (rows, k)
  for (int r = 0; r < rows; ++r) {
    for (int i = static_cast<int>(threadIdx.x) * 8; i < a.k; i += warps * warp_size * 8) {
      *reinterpret_cast<Packed16*>(x + r * a.k + i) =
          *reinterpret_cast<const Packed16*>(a.x + static_cast<int64_t>(r) * a.x_stride + i);
    }
  }
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int n = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / warp_size;
  if (n >= a.n) {
    return;
  }
  float sum[rows] = {};
  const bf16* w = a.w + static_cast<int64_t>(n) * a.k;
  for (int k = lane * 8; k < a.k; k += warp_size * 8) {
    const Eight weights = load_eight(w + k);
    for (int r = 0; r < rows; ++r) {
      const Eight operands = load_eight(x + r * a.k + k);
      for (int i = 0; i < 8; ++i) {
        sum[r] += to_float(operands.value[i]) * to_float(weights.value[i]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], distance);
    }
    if (lane == 0) {
      float* to = a.y + static_cast<int64_t>(r) * a.y_stride + n;
      const float value = sum[r] + (a.bias != nullptr ? to_float(a.bias[n]) : 0.0f);
      *to = a.add ? *to + value : value;
    }
  }
}

template <int rows>
void run(const GemmArgs& a, Stream stream) {
  launch(format("gemv_bf16 [{}, {}] x [{}, {}]", a.m, a.k, a.n, a.k), gemv_kernel<rows>,
         {(a.n + warps - 1) / warps, 1, 1}, warps * warp_size,
         static_cast<size_t>(rows) * static_cast<size_t>(a.k) * sizeof(bf16), stream, a);
}

}  // namespace

void gemv_bf16(const GemmArgs& a, Stream stream) {
  GPTOSS_CHECK(
      a.m > 0 && a.m <= gemv_rows && a.n > 0 && a.k > 0 && a.k % 8 == 0 && a.x_stride % 8 == 0,
      "gemv_bf16: expected 1 to {} rows, k and the stride multiples of 8, found [{}, {}] "
      "(stride {}) x [{}, {}]",
      gemv_rows, a.m, a.k, a.x_stride, a.n, a.k);
  switch (a.m) {
    case 1:
      return run<1>(a, stream);
    case 2:
      return run<2>(a, stream);
    case 3:
      return run<3>(a, stream);
    default:
      return run<4>(a, stream);
  }
}

}  // namespace gptoss::cuda
