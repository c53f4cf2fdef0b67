// gemv_bf16: up to 16 rows of x. Sixteen rows of w at a time are operand A of mma.m16n8k16 as they
// lie in memory: of 32 columns a lane reads eight neighbouring ones of rows g and g + 8, and takes
// the same eight of x, so both operands have their columns in the same (not the usual)
// order. A block's warps share the columns of one or of four such tiles.
#include "cuda/choose.h"
#include "cuda/kernels.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

namespace {

constexpr int warps = 8;
constexpr int threads = warps * warp_size;
constexpr int rows_w = 16;
constexpr int columns = 32;  // of two mma
constexpr int ahead = 4;     // pairs of loads under way in a lane

// Bytes of a row of x in shared memory: half a line of banks more than whole lines, so that rows g
// and g + 1 do not meet.
inline __host__ __device__ int row_bytes(int k) { return (k * 2 + 127) / 128 * 128 + 64; }

template <int tiles_x, int tiles_w>
__global__ void __launch_bounds__(threads) gemv_kernel(GemmArgs a) {
  GPTOSS_SHARED(shared);
  constexpr int splits = warps / tiles_w;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int g = lane / 4, t = lane % 4;
  const int first_n = (static_cast<int>(blockIdx.x) * tiles_w + warp % tiles_w) * rows_w;
  const int steps = (a.k + columns - 1) / columns;
  const bf16* w0 = a.w + static_cast<int64_t>(first_n + g) * a.k + t * 8;
  const bf16* w8 = w0 + static_cast<int64_t>(8) * a.k;
  const auto load = [&](const bf16* row, int n, int step) {
    return n < a.n && step * columns + t * 8 < a.k ? load_once(row + step * columns) : Words{};
  };

  Words next[ahead][2];  // weights do not depend on the kernel before
  GPTOSS_UNROLL
  for (int i = 0; i < ahead; ++i) {
    const int step = warp / tiles_w + i * splits;
    next[i][0] = load(w0, first_n + g, step);
    next[i][1] = load(w8, first_n + g + 8, step);
  }
  wait_for_previous();
  start_next();
  const int stride = row_bytes(a.k);
  const int pieces = stride / 16;
  for (int i = static_cast<int>(threadIdx.x); i < a.m * pieces; i += threads) {
    const int row = i / pieces, k = i % pieces * 8;
    Words piece{};
    if (k < a.k) {
      load_aligned(&piece, a.x + static_cast<int64_t>(row) * a.x_stride + k);
    }
    store_aligned(shared + i * 16, &piece);
  }
  __syncthreads();

  float sum[tiles_x][4] = {};
  for (int first = warp / tiles_w; first < steps; first += ahead * splits) {
    Words now[ahead][2];
    GPTOSS_UNROLL
    for (int i = 0; i < ahead; ++i) {
      now[i][0] = next[i][0];
      now[i][1] = next[i][1];
      const int step = first + (ahead + i) * splits;
      next[i][0] = load(w0, first_n + g, step);
      next[i][1] = load(w8, first_n + g + 8, step);
    }
    GPTOSS_UNROLL
    for (int i = 0; i < ahead; ++i) {
      const int step = first + i * splits;
      if (step >= steps) {
        continue;
      }
      const uint32_t low[4] = {now[i][0].word[0], now[i][1].word[0], now[i][0].word[1],
                               now[i][1].word[1]};
      const uint32_t high[4] = {now[i][0].word[2], now[i][1].word[2], now[i][0].word[3],
                                now[i][1].word[3]};
      GPTOSS_UNROLL
      for (int j = 0; j < tiles_x; ++j) {
        const int row = j * 8 + g < a.m ? j * 8 + g : a.m - 1;  // not used beyond
        Words x;
        load_aligned(&x, shared + row * stride + (step * columns + t * 8) * 2);
        multiply_add(sum[j], low, x.word);
        multiply_add(sum[j], high, x.word + 2);
      }
    }
  }

  __syncthreads();  // x is used up: its place takes the sums, (warps, 16, 8 · tiles_x)
  auto* sums = reinterpret_cast<float*>(shared);
  constexpr int width = tiles_x * 8;
  GPTOSS_UNROLL
  for (int j = 0; j < tiles_x; ++j) {
    GPTOSS_UNROLL
    for (int i = 0; i < 4; ++i) {
      sums[(warp * rows_w + g + i / 2 * 8) * width + j * 8 + t * 2 + i % 2] = sum[j][i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < tiles_w * rows_w * a.m; i += threads) {
    const int row = i / (tiles_w * rows_w), of_tile = i % (tiles_w * rows_w);
    const int n = static_cast<int>(blockIdx.x) * tiles_w * rows_w + of_tile;
    if (n < a.n) {
      float value = a.bias != nullptr ? to_float(a.bias[n]) : 0.0f;
      for (int split = 0; split < splits; ++split) {
        const int of_warp = split * tiles_w + of_tile / rows_w;
        value += sums[(of_warp * rows_w + of_tile % rows_w) * width + row];
      }
      float* to = a.y + static_cast<int64_t>(row) * a.y_stride + n;
      *to = a.add ? *to + value : value;
    }
  }
}

template <int tiles_x, int tiles_w>
void run(const GemmArgs& a, const Stream& stream) {
  const int x = a.m * row_bytes(a.k), sums = warps * rows_w * tiles_x * 8 * 4;
  const int shared = x > sums ? x : sums;
  GPTOSS_CHECK(shared <= stream.device.shared_bytes,
               "gemv_bf16: {} rows of {} need {} bytes of shared memory, a block has {}", a.m, a.k,
               shared, stream.device.shared_bytes);
  constexpr int block_n = tiles_w * rows_w;
  launch({"gemv_bf16", {a.m, a.n, a.k}}, gemv_kernel<tiles_x, tiles_w>,
         {(a.n + block_n - 1) / block_n, 1, 1}, threads, static_cast<size_t>(shared), stream, a);
}

}  // namespace

void gemv_bf16(const GemmArgs& a, const Stream& stream) {
  check_product("gemv_bf16", a);
  GPTOSS_CHECK(a.m <= gemv_rows, "gemv_bf16: expected 1 to {} rows, found {}", gemv_rows, a.m);
  const bool many = a.n > 4 * rows_w * 2 * stream.device.multiprocessors;
  if (a.m <= 8) {
    many ? run<1, 4>(a, stream) : run<1, 1>(a, stream);
  } else {
    many ? run<2, 4>(a, stream) : run<2, 1>(a, stream);
  }
}

}  // namespace gptoss::cuda
