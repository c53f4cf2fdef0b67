// embed, rope_tables, rope_and_store, combine, add: what moves few bytes.
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 256;

__global__ void __launch_bounds__(threads) embed_kernel(EmbedArgs a) {
  wait_for_previous();
  start_next();
  const int64_t token = blockIdx.x;
  const bf16* from = a.embedding + static_cast<int64_t>(a.ids[token]) * a.n;
  for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
    a.x[token * a.n + i] = to_float(from[i]);
  }
}

// In float64: float32 angles of distant positions have no correct digits left. In half turns, which
// reduce exactly.
__global__ void __launch_bounds__(threads) tables_kernel(RopeTablesArgs a) {
  wait_for_previous();
  start_next();
  const int i = static_cast<int>(blockIdx.x) * threads + static_cast<int>(threadIdx.x);
  if (i < a.tokens * a.half) {
    constexpr double half_turns = 0.31830988618379067154;  // 1 / π
    const double angle = a.position[i / a.half] * a.frequencies[i % a.half] * half_turns;
    a.cos[i] = static_cast<float>(cospi(angle) * a.concentration);
    a.sin[i] = static_cast<float>(sinpi(angle) * a.concentration);
  }
}

__global__ void __launch_bounds__(threads) rope_kernel(RopeStoreArgs a) {
  wait_for_previous();
  start_next();
  const int64_t token = blockIdx.x;
  const int half = a.kv.head_dim / 2, dim = a.kv.head_dim;
  const float* cos = a.cos + token * half;
  const float* sin = a.sin + token * half;
  const float* qkv = a.qkv + token * (a.heads + 2 * a.kv.kv_heads) * dim;
  const auto biased = [&](int i) { return qkv[i] + to_float(a.bias[i]); };
  const int slot = a.slots[token];
  const int first_v = (a.heads + a.kv.kv_heads) * half;
  for (int i = static_cast<int>(threadIdx.x); i < first_v; i += threads) {
    const int head = i / half, d = i % half;
    const float x1 = biased(head * dim + d), x2 = biased(head * dim + d + half);
    bf16* to = head < a.heads
                   ? a.q + (token * a.heads + head) * dim
                   : a.kv.base + kv_element(slot / page_size, a.kv.page_stride, a.kv.kv_heads, dim,
                                            page_size, false, head - a.heads, slot % page_size);
    to[d] = to_bf16(x1 * cos[d] - x2 * sin[d]);
    to[d + half] = to_bf16(x2 * cos[d] + x1 * sin[d]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < a.kv.kv_heads * dim; i += threads) {
    const int head = i / dim, d = i % dim;
    a.kv.base[kv_element(slot / page_size, a.kv.page_stride, a.kv.kv_heads, dim, page_size, true,
                         head, slot % page_size) +
              d] = to_bf16(biased(first_v * 2 + i));
  }
}

__global__ void __launch_bounds__(threads) combine_kernel(CombineArgs a) {
  wait_for_previous();
  start_next();
  const int64_t token = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < a.n; i += threads) {
    float sum = 0.0f;
    for (int rank = 0; rank < a.chosen; ++rank) {
      const int64_t pair = token * a.chosen + rank;
      if (a.row_of_pair[pair] >= 0) {
        sum += a.weights[pair] * a.expert_out[static_cast<int64_t>(a.row_of_pair[pair]) * a.n + i];
      }
    }
    a.y[token * a.n + i] = sum;
  }
}

}  // namespace

void embed(const EmbedArgs& a, const Stream& stream) {
  launch({"embed", {a.tokens, a.n}}, embed_kernel, {a.tokens, 1, 1}, threads, 0, stream, a);
}

void rope_tables(const RopeTablesArgs& a, const Stream& stream) {
  launch({"rope_tables", {a.tokens, a.half}}, tables_kernel,
         {(a.tokens * a.half + threads - 1) / threads, 1, 1}, threads, 0, stream, a);
}

void rope_and_store(const RopeStoreArgs& a, const Stream& stream) {
  launch({"rope_and_store", {a.tokens, a.heads, a.kv.head_dim}}, rope_kernel, {a.tokens, 1, 1},
         threads, 0, stream, a);
}

void combine(const CombineArgs& a, const Stream& stream) {
  launch({"combine", {a.tokens, a.n}}, combine_kernel, {a.tokens, 1, 1}, threads, 0, stream, a);
}

}  // namespace gptoss::cuda
