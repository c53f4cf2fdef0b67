// rms_norm: a block for each row, which brings the residual stream up to date on the way.
#include "cuda/residual.cuh"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) norm_kernel(NormArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  auto* x = reinterpret_cast<float*>(shared);  // (n), then a sum for each warp
  const int to = static_cast<int>(blockIdx.x);
  const int row = a.row_ids != nullptr ? a.row_ids[to] : to;
  const float factor = load_row<threads>(a.residual, row, a.n, a.eps, x, x + a.n);
  if (a.y != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
      a.y[static_cast<int64_t>(to) * a.n + i] = to_bf16(x[i] * factor * to_float(a.scale[i]));
    }
  }
}

}  // namespace

void rms_norm(const NormArgs& a, const Stream& stream) {
  const int shared = (a.n + threads / warp_size) * 4;
  GPTOSS_CHECK(a.rows > 0 && a.n > 0 && shared <= stream.device.shared_bytes,
               "rms_norm: expected positive sizes and rows that fit into {} bytes, found [{}, {}]",
               stream.device.shared_bytes, a.rows, a.n);
  launch({"rms_norm", {a.rows, a.n}}, norm_kernel, {a.rows, 1, 1}, threads,
         static_cast<size_t>(shared), stream, a);
}

}  // namespace gptoss::cuda
