// embed, rope_and_store, gate, group_by_expert, combine: what moves few bytes.
#include "batch.h"
#include "kernels.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) embed_kernel(EmbedArgs a) {
  const int64_t token = blockIdx.x;
  const bf16* from = a.embedding + static_cast<int64_t>(a.ids[token]) * a.n;
  for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
    a.x[token * a.n + i] = to_float(from[i]);
  }
}

__global__ void __launch_bounds__(threads) rope_kernel(RopeStoreArgs a) {
  const int64_t token = blockIdx.x;
  const int half = a.kv.head_dim / 2, dim = a.kv.head_dim;
  const float* cos = a.cos + token * half;
  const float* sin = a.sin + token * half;
  for (int i = static_cast<int>(threadIdx.x); i < a.heads * half; i += threads) {
    float* first = a.q + (token * a.heads + i / half) * dim + i % half;
    const float x1 = first[0], x2 = first[half];
    first[0] = x1 * cos[i % half] - x2 * sin[i % half];
    first[half] = x2 * cos[i % half] + x1 * sin[i % half];
  }
  const int slot = a.slots[token];
  const int64_t page = static_cast<int64_t>(slot / page_size) * a.kv.page_stride;
  for (int i = static_cast<int>(threadIdx.x); i < a.kv.kv_heads * half; i += threads) {
    const int head = i / half, d = i % half;
    const int64_t from = (token * a.kv.kv_heads + head) * dim + d;
    const float x1 = a.k[from], x2 = a.k[from + half];
    bf16* k = a.kv.base + page + (static_cast<int64_t>(head) * page_size + slot % page_size) * dim;
    bf16* v = k + static_cast<int64_t>(a.kv.kv_heads) * page_size * dim;
    k[d] = to_bf16(x1 * cos[d] - x2 * sin[d]);
    k[d + half] = to_bf16(x2 * cos[d] + x1 * sin[d]);
    v[d] = to_bf16(a.v[from]);
    v[d + half] = to_bf16(a.v[from + half]);
  }
}

__global__ void __launch_bounds__(threads) gate_kernel(GateArgs a) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  for (int e = static_cast<int>(threadIdx.x) / warp_size; e < a.experts; e += threads / warp_size) {
    float sum = 0.0f;
    for (int i = lane; i < a.n; i += warp_size) {
      sum += a.t[row * a.n + i] * to_float(a.w[static_cast<int64_t>(e) * a.n + i]);
    }
    for (int distance = warp_size / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if (lane == 0) {
      a.logits[row * a.experts + e] = sum + to_float(a.bias[e]);
    }
  }
}

// A thread for each expert counts, and later places, its own pairs in their order.
__global__ void __launch_bounds__(threads) group_kernel(GroupArgs a) {
  GPTOSS_SHARED(shared);
  auto* start = reinterpret_cast<int32_t*>(shared);  // (experts + 1)
  const int expert = static_cast<int>(threadIdx.x);
  if (expert < a.experts) {
    int count = 0;
    for (int pair = 0; pair < a.pairs; ++pair) {
      count += a.ids[pair] == expert ? 1 : 0;
    }
    start[expert + 1] = count;
  }
  __syncthreads();
  if (expert == 0) {
    start[0] = 0;
    for (int e = 0; e < a.experts; ++e) {
      start[e + 1] += start[e];
    }
  }
  __syncthreads();
  for (int e = expert; e <= a.experts; e += threads) {
    a.start[e] = start[e];
  }
  if (expert < a.experts) {
    int row = start[expert];
    for (int pair = 0; pair < a.pairs; ++pair) {
      if (a.ids[pair] == expert) {
        a.pair_of_row[row] = pair;
        a.row_of_pair[pair] = row++;
      }
    }
  }
}

__global__ void __launch_bounds__(threads) combine_kernel(CombineArgs a) {
  const int64_t token = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
    float sum = a.x[token * a.n + i];
    for (int rank = 0; rank < a.chosen; ++rank) {
      const int64_t pair = token * a.chosen + rank;
      sum += a.weights[pair] * a.y[static_cast<int64_t>(a.row_of_pair[pair]) * a.n + i];
    }
    a.x[token * a.n + i] = sum;
  }
}

}  // namespace

void embed(const EmbedArgs& a, Stream stream) {
  launch(format("embed {} tokens", a.tokens), embed_kernel, {a.tokens, 1, 1}, threads, 0, stream,
         a);
}

void rope_and_store(const RopeStoreArgs& a, Stream stream) {
  launch(format("rope_and_store {} tokens", a.tokens), rope_kernel, {a.tokens, 1, 1}, threads, 0,
         stream, a);
}

void gate(const GateArgs& a, Stream stream) {
  launch(format("gate [{}, {}] x [{}, {}]", a.rows, a.n, a.experts, a.n), gate_kernel,
         {a.rows, 1, 1}, threads, 0, stream, a);
}

void group_by_expert(const GroupArgs& a, Stream stream) {
  GPTOSS_CHECK(a.experts <= threads, "group_by_expert: expected at most {} experts, found {}",
               threads, a.experts);
  launch(format("group_by_expert {} pairs", a.pairs), group_kernel, {1, 1, 1}, threads,
         static_cast<size_t>(a.experts + 1) * sizeof(int32_t), stream, a);
}

void combine(const CombineArgs& a, Stream stream) {
  launch(format("combine {} tokens", a.tokens), combine_kernel, {a.tokens, 1, 1}, threads, 0,
         stream, a);
}

}  // namespace gptoss::cuda
