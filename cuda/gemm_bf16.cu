// gemm_bf16: tile_gemm.cuh on matrices as they lie.
#include "cuda/kernels.h"
#include "cuda/tile_gemm.cuh"

namespace gptoss::cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(T::threads) gemm_kernel(GemmArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  const int first_m = static_cast<int>(blockIdx.y) * T::block_m;
  const int first_n = static_cast<int>(blockIdx.x) * T::block_n;
  const auto load = [&](auto rows, unsigned char* stage, const bf16* matrix, int stride, int first,
                        int count, int column) {
    for (int i = static_cast<int>(threadIdx.x); i < rows() * pieces; i += T::threads) {
      const int row = i / pieces, piece = i % pieces, k = column + piece * 8;
      load_piece(stage, row, piece, matrix + static_cast<int64_t>(first + row) * stride + k, matrix,
                 first + row < count && k < a.k);
    }
  };
  float sum[T::tiles_m][T::tiles_n][4] = {};
  multiply_tile<T>(
      a.k, shared,
      [&](unsigned char* stage, int column) {
        load([] { return T::block_m; }, stage, a.x, a.x_stride, first_m, a.m, column);
      },
      [&](unsigned char* stage, int column) {
        load([] { return T::block_n; }, stage, a.w, a.k, first_n, a.n, column);
      },
      sum);
  for_each_pair<T>(sum, [&](int row, int column, float first, float second) {
    row += first_m;
    column += first_n;
    if (row >= a.m) {
      return;
    }
    float* to = a.y + static_cast<int64_t>(row) * a.y_stride + column;
    const float values[2] = {first, second};
    for (int i = 0; i < 2 && column + i < a.n; ++i) {
      const float value = values[i] + (a.bias != nullptr ? to_float(a.bias[column + i]) : 0.0f);
      to[i] = a.add ? to[i] + value : value;
    }
  });
}

template <class T>
void run(const GemmArgs& a, const Stream& stream) {
  const Index grid{(a.n + T::block_n - 1) / T::block_n, (a.m + T::block_m - 1) / T::block_m, 1};
  launch({"gemm_bf16", {a.m, a.n, a.k}}, gemm_kernel<T>, grid, T::threads, T::shared_bytes, stream,
         a);
}

}  // namespace

void check_product(const char* kernel, const GemmArgs& a) {
  GPTOSS_CHECK(a.m > 0 && a.n > 0 && a.k > 0 && a.k % 8 == 0 && a.x_stride % 8 == 0,
               "{}: expected positive sizes, k and the stride multiples of 8, found [{}, {}] "
               "(stride {}) x [{}, {}]",
               kernel, a.m, a.k, a.x_stride, a.n, a.k);
}

void gemm_bf16(const GemmArgs& a, const Stream& stream) {
  check_product("gemm_bf16", a);
  // Few rows are bound by reading w: narrow tiles for many blocks, many stages for many bytes under
  // way.
  if (a.m <= 32) {
    run<Tile<32, 32, 16, 16, 8>>(a, stream);
  } else if (a.m <= 64) {
    run<Tile<64, 32, 32, 16, 6>>(a, stream);
  } else {
    run<Tile<128, 128, 64, 32, 3>>(a, stream);
  }
}

}  // namespace gptoss::cuda
