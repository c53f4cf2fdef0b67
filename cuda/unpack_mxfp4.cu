// unpack_mxfp4: a thread for each four bytes of a block, eight numbers.
#include "kernels.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;
constexpr int words_a_block = 4;

__global__ void __launch_bounds__(threads) unpack_kernel(UnpackArgs a) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= a.count * words_a_block) {
    return;
  }
  uint32_t codes;
  memcpy(&codes, a.blocks + i * 4, sizeof codes);
  const float scale = e8m0_to_float(a.scales[i / words_a_block]);
  bf16* to = a.to + i * 8;
  for (int k = 0; k < 8; ++k) {
    to[k] = to_bf16(e2m1_to_float(codes >> (4 * k) & 15u) * scale);
  }
}

}  // namespace

void unpack_mxfp4(const UnpackArgs& a, Stream stream) {
  GPTOSS_CHECK(a.count > 0, "unpack_mxfp4: expected blocks, found {}", a.count);
  const int64_t blocks = (a.count * words_a_block + threads - 1) / threads;
  GPTOSS_CHECK(blocks < (int64_t{1} << 31), "unpack_mxfp4: too many blocks: {}", a.count);
  launch(format("unpack_mxfp4 of {} blocks", a.count), unpack_kernel,
         {static_cast<int>(blocks), 1, 1}, threads, 0, stream, a);
}

}  // namespace gptoss::cuda
