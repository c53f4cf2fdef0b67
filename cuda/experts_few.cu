// experts, few pairs per expert: bound by reading the packed weights, which are operand A even for
// one row of x. A block's warps share the columns of a few tiles; its rows of x lie in shared
// memory, up to 16 at a time.
#include "cuda/experts.cuh"

namespace gptoss::cuda {

namespace {

constexpr int warps = 8;
constexpr int threads = warps * warp_size;
constexpr int ahead = 3;  // chunks under way in a lane

inline __host__ __device__ int row_bytes(int k) { return chunks_of(k) * chunk_columns * 2 + 16; }

template <int tiles_x, int tiles_w>
__global__ void __launch_bounds__(threads) few_kernel(ExpertArgs a) {
  GPTOSS_SHARED(shared);
  constexpr int splits = warps / tiles_w;
  constexpr int width = tiles_x * 8;  // rows of x at a time
  wait_for_previous();
  start_next();
  const int which = static_cast<int>(blockIdx.y);
  if (which >= a.active[0]) {
    return;  // the grid is as large as the worst case
  }
  const int expert = a.active[1 + which];
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int tiles = a.n / tile_rows, chunks = chunks_of(a.k);
  const int first_tile = static_cast<int>(blockIdx.x) * tiles_w;
  const int tile = first_tile + warp % tiles_w;
  const int64_t index = chunk_index(expert, tile, 0, a.n, a.k);
  const int stride = row_bytes(a.k);
  const int pieces = stride / 16;
  const int end_row = a.start[expert + 1];
  auto* sums = reinterpret_cast<float*>(shared);  // (warps, 16, width), when x is used up
  const auto load = [&](int chunk) {
    return tile < tiles && chunk < chunks ? load_chunk(a, index + chunk) : Chunk{};
  };

  for (int first_row = a.start[expert]; first_row < end_row; first_row += width) {
    const int rows = end_row - first_row < width ? end_row - first_row : width;
    Chunk next[ahead];
    GPTOSS_UNROLL
    for (int i = 0; i < ahead; ++i) {
      next[i] = load(warp / tiles_w + i * splits);
    }
    for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += threads) {
      const int row = i / pieces, k = i % pieces * 8;
      Words piece{};
      if (k < a.k) {
        load_aligned(&piece, a.x + row_of_x(a, first_row + row) * a.k + k);
      }
      store_aligned(shared + i * 16, &piece);
    }
    __syncthreads();
    float sum[tiles_x][4] = {};
    for (int first = warp / tiles_w; first < chunks; first += ahead * splits) {
      GPTOSS_UNROLL
      for (int i = 0; i < ahead; ++i) {
        const Chunk now = next[i];
        next[i] = load(first + (ahead + i) * splits);
        const int chunk = first + i * splits;
        if (chunk >= chunks) {
          continue;
        }
        GPTOSS_UNROLL
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t low[4], high[4];
          unpack_step(now, pair * 2, low);
          unpack_step(now, pair * 2 + 1, high);
          GPTOSS_UNROLL
          for (int j = 0; j < tiles_x; ++j) {
            const int row = j * 8 + lane % 8 < rows ? j * 8 + lane % 8 : rows - 1;
            uint32_t x[4];
            load_matrices(
                x, shared + row * stride + (chunk * chunk_columns + pair * 32 + lane / 8 * 8) * 2);
            multiply_add(sum[j], low, x);
            multiply_add(sum[j], high, x + 2);
          }
        }
      }
    }
    __syncthreads();
    const int g = lane / 4, t = lane % 4;
    GPTOSS_UNROLL
    for (int j = 0; j < tiles_x; ++j) {
      GPTOSS_UNROLL
      for (int i = 0; i < 4; ++i) {
        sums[(warp * tile_rows + g + i / 2 * 8) * width + j * 8 + t * 2 + i % 2] = sum[j][i];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tiles_w * 8 * rows; i += threads) {
      const int row = i / (tiles_w * 8), of_tile = i % (tiles_w * 8) / 8, r = i % 8;
      if (first_tile + of_tile < tiles) {
        float first = 0.0f, second = 0.0f;
        for (int split = 0; split < splits; ++split) {
          const float* of_warp = sums + (split * tiles_w + of_tile) * tile_rows * width;
          first += of_warp[r * width + row];
          second += of_warp[(r + 8) * width + row];
        }
        put_sums(a, expert, first_tile + of_tile, r, first_row + row, first, second);
      }
    }
    __syncthreads();  // the next rows of x take the sums' place
  }
}

template <int tiles_x, int tiles_w>
void run(const ExpertArgs& a, const Stream& stream) {
  const int x = tiles_x * 8 * row_bytes(a.k), sums = warps * tile_rows * tiles_x * 8 * 4;
  const int shared = x > sums ? x : sums;
  GPTOSS_CHECK(shared <= stream.device.shared_bytes,
               "experts: rows of {} need {} bytes of shared memory, a block has {}", a.k, shared,
               stream.device.shared_bytes);
  launch({"experts_few", {a.pairs, a.experts, a.n, a.k}}, few_kernel<tiles_x, tiles_w>,
         {(a.n / tile_rows + tiles_w - 1) / tiles_w, a.pairs < a.experts ? a.pairs : a.experts, 1},
         threads, static_cast<size_t>(shared), stream, a);
}

}  // namespace

void experts_few(const ExpertArgs& a, const Stream& stream) {
  // Wide matrices have blocks enough with four tiles each, which read x less often.
  const bool wide = a.n >= 4096;
  // And with few rows each, more blocks fit on a multiprocessor.
  if (a.pairs <= 4 * a.experts) {
    wide ? run<1, 4>(a, stream) : run<1, 2>(a, stream);
  } else {
    wide ? run<2, 4>(a, stream) : run<2, 2>(a, stream);
  }
}

}  // namespace gptoss::cuda
