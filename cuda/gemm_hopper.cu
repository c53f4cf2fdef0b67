// gemm_bf16 on Hopper: TMA brings tiles, wgmma multiplies them. One warpgroup only loads, two
// multiply 64 rows of the tile each; blocks are as many as there are multiprocessors and walk over
// the tiles (the scheme of CUTLASS's and DeepGEMM's "warp-specialised persistent" products).
#include <vector>

#include "cuda/choose.h"
#include "cuda/hopper.h"
#include "cuda/kernels.h"

#ifndef GPTOSS_CUDA_EMULATED
#include <cudaTypedefs.h>
#endif

namespace gptoss::cuda {

#ifdef GPTOSS_CUDA_EMULATED
TensorMap make_tensor_map(const bf16* base, int64_t rows, int64_t columns, int64_t stride,
                          int box_rows) {
  return {base, rows, columns, stride, box_rows};
}
#else
TensorMap make_tensor_map(const bf16* base, int64_t rows, int64_t columns, int64_t stride,
                          int box_rows) {
  // The driver's function, asked for at run time: the library must load where no driver is.
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
#endif
    GPTOSS_CHECK(found == cudaDriverEntryPointSuccess && function != nullptr,
                 "CUDA: this driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  TensorMap map;
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t row_bytes[1] = {static_cast<cuuint64_t>(stride) * sizeof(bf16)};
  const cuuint32_t tile[2] = {tma_columns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16*>(base), size, row_bytes,
             tile, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  GPTOSS_CHECK(status == CUDA_SUCCESS,
               "CUDA: cuTensorMapEncodeTiled of [{}, {}], stride {}, tiles of {} rows: error {}",
               rows, columns, stride, box_rows, static_cast<int>(status));
  return map;
}
#endif

namespace {

constexpr int warpgroup = 128;
constexpr int multiplying = 2;  // warpgroups
constexpr int threads = (1 + multiplying) * warpgroup;
constexpr int tile_m = multiplying * 64;

struct Args {
  TensorMap x, w;
  GemmArgs gemm;
  TileGrid grid;
};

template <int tile_n>
struct Shape {
  static constexpr int x_bytes = tile_m * tma_columns * 2;
  static constexpr int bytes = x_bytes + tile_n * tma_columns * 2;
  static constexpr int stages = (200 << 10) / bytes;
  static constexpr int shared_bytes =
      stages * bytes + 2 * stages * static_cast<int>(sizeof(Barrier));
};

#ifdef GPTOSS_HOPPER
// Which stage, and in which round of using it.
template <int stages>
struct Turn {
  int stage = 0, parity = 0;
  __device__ void next() {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int tile_n>
__device__ void load_tiles(const Args& a, unsigned char* shared, Barrier* full, Barrier* empty) {
  using S = Shape<tile_n>;
  Turn<S::stages> turn;
  for (int i = static_cast<int>(blockIdx.x); i < a.grid.count(); i += static_cast<int>(gridDim.x)) {
    const TileGrid::Tile tile = a.grid.tile(i);
    for (int k = 0; k < a.gemm.k; k += tma_columns) {
      unsigned char* to = shared + turn.stage * S::bytes;
      wait(empty[turn.stage], turn.parity ^ 1);
      arrive_and_expect(full[turn.stage], S::bytes);
      load_tile(to, a.x, k, tile.m * tile_m, full[turn.stage]);
      load_tile(to + S::x_bytes, a.w, k, tile.n * tile_n, full[turn.stage]);
      turn.next();
    }
  }
}

template <int tile_n>
__device__ void store(const GemmArgs& a, const float (&sum)[tile_n / 2], int first_row,
                      int first_column) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size % 4;
  GPTOSS_UNROLL
  for (int i = 0; i < tile_n / 2; i += 2) {
    const int row = first_row + warp * 16 + lane / 4 + i % 4 / 2 * 8;
    const int column = first_column + i / 4 * 8 + lane % 4 * 2;
    if (row < a.m) {
      float* to = a.y + static_cast<int64_t>(row) * a.y_stride + column;
      GPTOSS_UNROLL
      for (int j = 0; j < 2; ++j) {
        if (column + j < a.n) {
          const float value =
              sum[i + j] + (a.bias != nullptr ? to_float(a.bias[column + j]) : 0.0f);
          to[j] = a.add ? to[j] + value : value;
        }
      }
    }
  }
}

template <int tile_n>
__device__ void multiply(const Args& a, unsigned char* shared, Barrier* full, Barrier* empty) {
  using S = Shape<tile_n>;
  const int group = static_cast<int>(threadIdx.x) / warpgroup - 1;
  const bool first_thread = threadIdx.x % warpgroup == 0;
  Turn<S::stages> turn;
  for (int i = static_cast<int>(blockIdx.x); i < a.grid.count(); i += static_cast<int>(gridDim.x)) {
    const TileGrid::Tile tile = a.grid.tile(i);
    float sum[tile_n / 2];
    int before = -1;  // the stage whose products are under way
    for (int k = 0; k < a.gemm.k; k += tma_columns) {
      const unsigned char* x = shared + turn.stage * S::bytes + group * 64 * tma_columns * 2;
      const unsigned char* w = shared + turn.stage * S::bytes + S::x_bytes;
      wait(full[turn.stage], turn.parity);
      begin_products();
      GPTOSS_UNROLL
      for (int c = 0; c < tma_columns; c += 16) {
        multiply_tiles(sum, operand(x, c), operand(w, c), k > 0 || c > 0);
      }
      commit_products();
      wait_for_products<1>();
      if (before >= 0 && first_thread) {
        arrive(empty[before]);
      }
      before = turn.stage;
      turn.next();
    }
    wait_for_products<0>();
    if (first_thread) {
      arrive(empty[before]);
    }
    store<tile_n>(a.gemm, sum, tile.m * tile_m + group * 64, tile.n * tile_n);
  }
}
#endif

template <int tile_n>
__global__ void __launch_bounds__(threads, 1) kernel(const __grid_constant__ Args a) {
#ifdef GPTOSS_HOPPER
  using S = Shape<tile_n>;
  GPTOSS_SHARED(shared);
  auto* full = reinterpret_cast<Barrier*>(shared + S::stages * S::bytes);
  Barrier* empty = full + S::stages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::stages; ++i) {
      initialise(full[i], 1);
      initialise(empty[i], multiplying);
    }
    publish_barriers();
  }
  __syncthreads();
  wait_for_previous();
  start_next();
  if (threadIdx.x < warpgroup) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      load_tiles<tile_n>(a, shared, full, empty);
    }
  } else {
    take_registers<232>();
    multiply<tile_n>(a, shared, full, empty);
  }
#else
  __trap();  // another chip's code: never silently nothing
#endif
}

template <int tile_n>
void run(const GemmArgs& g, const Stream& stream) {
  using S = Shape<tile_n>;
  const Args a{make_tensor_map(g.x, g.m, g.k, g.x_stride, tile_m),
               make_tensor_map(g.w, g.n, g.k, g.k, tile_n), g, TileGrid(g.m, g.n, tile_m, tile_n)};
  const int blocks = a.grid.count() < stream.device.multiprocessors ? a.grid.count()
                                                                    : stream.device.multiprocessors;
  launch({"gemm_hopper", {g.m, g.n, g.k, tile_n}}, kernel<tile_n>, {blocks, 1, 1}, threads,
         S::shared_bytes, stream, a);
}

}  // namespace

void gemm_hopper(const GemmArgs& a, const Stream& stream) {
  check_product("gemm_hopper", a);
  GPTOSS_CHECK(stream.device.major == 9, "gemm_hopper: expected compute capability 9, found {}.{}",
               stream.device.major, stream.device.minor);
  switch (hopper_tile(a.m, a.n, tile_m, stream.device.multiprocessors)) {
    case 256:
      return run<256>(a, stream);
    case 192:
      return run<192>(a, stream);
    default:
      return run<128>(a, stream);
  }
}

}  // namespace gptoss::cuda
