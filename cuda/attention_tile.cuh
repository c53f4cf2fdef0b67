// What both attention kernels share: a warp's 16 rows of queries against some keys, with mma.sync
// and an online softmax (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023). Logits are in
// units of log 2.
#pragma once

#include <type_traits>

#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

constexpr float log2_e = 1.44269504088896340736f;

// Lane l holds rows l / 4 and l / 4 + 8.
template <int dim>
struct QueryRows {
  static constexpr int pieces = dim / 8;
  uint32_t q[dim / 16][4];
  float out[dim / 8][4] = {};
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};      // this lane's part
  int first[2], last[2];  // key positions that the row sees; none where first > last

  // rows[i]: where row i begins, or null (which sees no keys).
  __device__ void load(const bf16* const (&rows)[2]) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    GPTOSS_UNROLL
    for (int step = 0; step < dim / 16; ++step) {
      GPTOSS_UNROLL
      for (int j = 0; j < 4; ++j) {
        const bf16* row = rows[j % 2];
        q[step][j] = 0;
        if (row != nullptr) {
          load_aligned(&q[step][j], row + step * 16 + j / 2 * 8 + t * 2);
        }
      }
    }
  }

  // `keys` keys from position `begin` on; k and v: tiles (keys, dim), swizzled. scale: of logits,
  // times log2 e. The keys that no row sees must hold finite numbers, zeros for instance.
  template <int keys>
  __device__ void attend(const unsigned char* k, const unsigned char* v, int begin, float scale) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    float p[keys / 8][4] = {};
    GPTOSS_UNROLL
    for (int step = 0; step < dim / 16; ++step) {
      const unsigned char* place =
          k + swizzled(lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2, pieces);
      GPTOSS_UNROLL
      for (int j = 0; j < keys / 8; j += 2) {
        uint32_t b[4];
        load_matrices(b, place + swizzled_rows(j * 8, pieces));
        multiply_add(p[j], q[step], b);
        multiply_add(p[j + 1], q[step], b + 2);
      }
    }
    float largest[2] = {max[0], max[1]};
    GPTOSS_UNROLL
    for (int j = 0; j < keys / 8; ++j) {
      GPTOSS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int position = begin + j * 8 + lane % 4 * 2 + i % 2;
        const bool seen = position >= first[i / 2] && position <= last[i / 2];
        p[j][i] = seen ? p[j][i] * scale : -INFINITY;
        largest[i / 2] = fmaxf(largest[i / 2], p[j][i]);
      }
    }
    GPTOSS_UNROLL
    for (int half = 0; half < 2; ++half) {
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], 1));
      largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], 2));
      // No key seen yet: any finite number will do, −∞ − (−∞) would not.
      const float base = largest[half] == -INFINITY ? 0.0f : largest[half];
      const float shrink = exp2f(max[half] - base);
      max[half] = largest[half];
      sum[half] *= shrink;
      GPTOSS_UNROLL
      for (int n = 0; n < dim / 8; ++n) {
        out[n][half * 2] *= shrink;
        out[n][half * 2 + 1] *= shrink;
      }
      GPTOSS_UNROLL
      for (int j = 0; j < keys / 8; ++j) {
        GPTOSS_UNROLL
        for (int i = half * 2; i < half * 2 + 2; ++i) {
          p[j][i] = exp2f(p[j][i] - base);
          sum[half] += p[j][i];
        }
      }
    }
    uint32_t a[keys / 16][4];
    GPTOSS_UNROLL
    for (int step = 0; step < keys / 16; ++step) {
      GPTOSS_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float* pair = p[step * 2 + i / 2] + i % 2 * 2;
        a[step][i] = pack_pair(pair[0], pair[1]);
      }
    }
    GPTOSS_UNROLL
    for (int n = 0; n < dim / 8; n += 2) {
      const unsigned char* place = v + swizzled(lane % 8 + lane / 8 % 2 * 8, n + lane / 16, pieces);
      GPTOSS_UNROLL
      for (int step = 0; step < keys / 16; ++step) {
        uint32_t b[4];
        load_matrices_transposed(b, place + swizzled_rows(step * 16, pieces));
        multiply_add(out[n], a[step], b);
        multiply_add(out[n + 1], a[step], b + 2);
      }
    }
  }

  // After the last attend(): sum of the whole row, in all of its lanes.
  __device__ void finish() {
    GPTOSS_UNROLL
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    }
  }
};

// The sink takes part in the sum once, with a logit of its own and no value (docs/spec.md,
// "Attention"): what a row's output is multiplied by.
__device__ inline float weight_with_sink(float max, float sum, float sink) {
  sink *= log2_e;
  const float largest = fmaxf(max, sink);
  const float shrink = exp2f(max - largest);
  return shrink / (sum * shrink + exp2f(sink - largest));
}

// Calls run with the head size as a constant. Throws Error for sizes that the tiles do not have.
template <class Run>
void with_head_dim(const char* kernel, int head_dim, const Run& run) {
  switch (head_dim) {
    case 16:
      return run(std::integral_constant<int, 16>());
    case 32:
      return run(std::integral_constant<int, 32>());
    case 64:
      return run(std::integral_constant<int, 64>());
    case 128:
      return run(std::integral_constant<int, 128>());
    default:
      throw Error(format("{}: expected heads of 16, 32, 64 or 128, found {}", kernel, head_dim));
  }
}

// Starts copying 16 bytes of the key or value at `position` (row and piece of a tile), zeros where
// it lies outside first … last.
__device__ inline void copy_key(const AttentionArgs& a, const int32_t* pages, int kv_head,
                                bool value, int position, int first, int last, int piece,
                                unsigned char* to) {
  const bool inside = position >= first && position <= last;
  const bf16* from = a.kv.base;
  if (inside) {
    from += kv_element(pages[position / page_size], a.kv.page_stride, a.kv.kv_heads, a.kv.head_dim,
                       page_size, value, kv_head, position % page_size) +
            piece * 8;
  }
  copy_async(to, from, inside ? 16 : 0);
}

}  // namespace gptoss::cuda
