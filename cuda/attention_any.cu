// attention_any: for shapes that the kernels on tensor cores do not have. A block for each token
// and KV head, which walks over the pages that the token sees. The group's heads share what is
// read. Softmax is online (Milakov and Gimelshein 2018); the sink is where it begins.
#include "cuda/kernels.h"
#include "cuda/ptx.h"

namespace gptoss::cuda {

namespace {

constexpr int threads = 128;
constexpr int max_elements = 16;  // of the output, a thread: group · head_dim ≤ 2048

// Shared memory: q, logits, and each head's maximum, sum and shrinking factor.
struct Layout {
  int q, logits, max, sum, shrink, end;
  __host__ __device__ Layout(int group, int head_dim)
      : q(0),
        logits(q + group * head_dim),
        max(logits + group * page_size),
        sum(max + group),
        shrink(sum + group),
        end(shrink + group) {}
};

__global__ void __launch_bounds__(threads) attention_kernel(AttentionArgs a) {
  GPTOSS_SHARED(shared);
  wait_for_previous();
  start_next();
  const int token = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const int group = a.heads / a.kv.kv_heads, dim = a.kv.head_dim;
  const Layout at(group, dim);
  auto* memory = reinterpret_cast<float*>(shared);
  const int64_t offset = (static_cast<int64_t>(token) * a.heads + kv_head * group) * dim;
  for (int i = thread; i < group * dim; i += threads) {
    memory[at.q + i] = to_float(a.q[offset + i]) * a.scale;
  }
  for (int g = thread; g < group; g += threads) {
    memory[at.max + g] = to_float(a.sinks[kv_head * group + g]);
    memory[at.sum + g] = 1.0f;
  }
  float out[max_elements] = {};
  const int position = a.position[token];
  const int first = position >= a.window ? position - a.window + 1 : 0;
  const int32_t* pages = a.pages + static_cast<int64_t>(a.sequence[token]) * a.max_blocks;
  const int64_t part = static_cast<int64_t>(page_size) * dim;  // one KV head's K in a page
  for (int block = first / page_size; block <= position / page_size; ++block) {
    const bf16* k = a.kv.base + pages[block] * a.kv.page_stride + kv_head * part;
    const bf16* v = k + a.kv.kv_heads * part;
    __syncthreads();  // q is there; logits of the last page are used up
    for (int i = thread; i < group * page_size; i += threads) {
      const int g = i / page_size, key = i % page_size, at_position = block * page_size + key;
      float dot = -INFINITY;
      if (at_position >= first && at_position <= position) {
        dot = 0.0f;
        for (int d = 0; d < dim; ++d) {
          dot += memory[at.q + g * dim + d] * to_float(k[key * dim + d]);
        }
      }
      memory[at.logits + i] = dot;
    }
    __syncthreads();
    for (int g = thread; g < group; g += threads) {
      float* logits = memory + at.logits + g * page_size;
      float largest = memory[at.max + g];
      for (int key = 0; key < page_size; ++key) {
        largest = logits[key] > largest ? logits[key] : largest;
      }
      const float shrink = expf(memory[at.max + g] - largest);
      float sum = memory[at.sum + g] * shrink;
      for (int key = 0; key < page_size; ++key) {
        logits[key] = expf(logits[key] - largest);
        sum += logits[key];
      }
      memory[at.max + g] = largest;
      memory[at.sum + g] = sum;
      memory[at.shrink + g] = shrink;
    }
    __syncthreads();
    const int begin = first > block * page_size ? first - block * page_size : 0;
    const int end =
        position - block * page_size + 1 < page_size ? position - block * page_size + 1 : page_size;
    GPTOSS_UNROLL
    for (int e = 0; e < max_elements; ++e) {
      const int i = thread + e * threads;
      if (i < group * dim) {
        const int g = i / dim, d = i % dim;
        float sum = out[e] * memory[at.shrink + g];
        // Keys that are not seen may hold anything, NaN too: not even a weight of 0 may meet them.
        for (int key = begin; key < end; ++key) {
          sum += memory[at.logits + g * page_size + key] * to_float(v[key * dim + d]);
        }
        out[e] = sum;
      }
    }
  }
  GPTOSS_UNROLL
  for (int e = 0; e < max_elements; ++e) {
    const int i = thread + e * threads;
    if (i < group * dim) {
      a.out[offset + i] = to_bf16(out[e] / memory[at.sum + i / dim]);
    }
  }
}

}  // namespace

void attention_any(const AttentionArgs& a, const Stream& stream) {
  const int group = a.heads / a.kv.kv_heads, dim = a.kv.head_dim;
  GPTOSS_CHECK(
      a.tokens > 0 && group * a.kv.kv_heads == a.heads && group * dim <= threads * max_elements,
      "attention_any: expected whole groups of at most {} elements, found {} heads of {} on {} "
      "KV heads",
      threads * max_elements, a.heads, dim, a.kv.kv_heads);
  launch({"attention_any", {a.tokens, a.heads, dim}}, attention_kernel,
         {a.tokens, a.kv.kv_heads, 1}, threads,
         static_cast<size_t>(Layout(group, dim).end) * sizeof(float), stream, a);
}

}  // namespace gptoss::cuda
