// Matrix products and their operands, spread over threads.
#include <algorithm>
#include <cstring>

#include "check.h"
#include "cpu/ops.h"
#include "cpu/threads.h"

namespace gptoss::cpu {

namespace {

constexpr int64_t columns_per_task = 64;

}  // namespace

const Kernels& kernels_for(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return kernels_generic;
    case Isa::avx2:
#ifdef GPTOSS_HAVE_AVX2
      return kernels_avx2;
#else
      break;
#endif
    case Isa::avx512:
#ifdef GPTOSS_HAVE_AVX512
      return kernels_avx512;
#else
      break;
#endif
  }
  throw Error(format("this build has no {} kernels", isa_name(isa)));
}

Operand make_operand(Compute& compute, float* x, int64_t rows, int64_t cols,
                     Buffer<bf16>& storage) {
  if (!compute.round) {
    return {x, rows, cols, nullptr};
  }
  if (!compute.use_gemm(rows)) {
    parallel_for(compute.threads, rows, cols,
                 [&](int64_t r, int) { compute.kernels.round_bf16(x + r * cols, cols); });
    return {x, rows, cols, nullptr};
  }
  const int64_t padded = padded_rows(rows);
  bf16* copy = storage.reserve(padded * cols);
  parallel_for(compute.threads, rows, cols, [&](int64_t r, int) {
    compute.kernels.round_bf16(x + r * cols, cols);
    compute.kernels.to_bf16(x + r * cols, copy + r * cols, cols);
  });
  std::memset(static_cast<void*>(copy + rows * cols), 0,
              static_cast<size_t>((padded - rows) * cols) * sizeof(bf16));
  return {x, rows, cols, copy};
}

void linear(Compute& compute, const Operand& x, const bf16* weight, const bf16* bias, int64_t n,
            float* y, int64_t y_stride) {
  if (x.x_bf16 != nullptr) {
    compute.gemm.matmul(x.x_bf16, weight, y, padded_rows(x.rows), n, x.cols, y_stride);
    if (bias != nullptr) {
      parallel_for(compute.threads, x.rows, n, [&](int64_t r, int) {
        for (int64_t i = 0; i < n; ++i) {
          y[r * y_stride + i] += to_float(bias[i]);
        }
      });
    }
    return;
  }
  const int64_t tasks = (n + columns_per_task - 1) / columns_per_task;
  const int64_t cost = x.rows * columns_per_task * x.cols;
  parallel_for(compute.threads, tasks, cost, [&](int64_t task, int) {
    MatmulArgs args{};
    args.x = x.x;
    args.x_stride = x.cols;
    args.rows = x.rows;
    args.cols = x.cols;
    args.weight = weight;
    args.bias = bias;
    args.y = y;
    args.y_stride = y_stride;
    args.begin = task * columns_per_task;
    args.end = std::min(n, args.begin + columns_per_task);
    compute.kernels.matmul(args);
  });
}

}  // namespace gptoss::cpu
