// Rotary positions, paged K and V, attention: spread over threads.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/cpu/layer.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

void attention(Compute& compute, const LayerInput& in, float* q, float* k, const float* v,
               float* out, Buffer<float>& state) {
  const auto& [config, shard, batch, index, rope, kv, layer, weights] = in;
  const KvGroup group = config.is_sliding(layer) ? kv_sliding : kv_full;
  const int64_t half = config.head_dim / 2;
  const int64_t kv_heads = config.num_key_value_heads;
  const int64_t heads_per_kv = config.group_size();
  const auto pages_of = [&](int64_t t) {
    return batch.block_table[group] +
           static_cast<int64_t>(index.sequence[static_cast<size_t>(t)]) * batch.max_blocks;
  };

  // All K and V of the step are stored before any token attends: a chunk's later tokens see its
  // earlier ones through the pages.
  parallel_for(compute.threads, batch.num_tokens, config.query_size(), [&](int64_t t, int) {
    const float* cos = rope.cos.data() + t * half;
    const float* sin = rope.sin.data() + t * half;
    float* k_row = k + t * config.kv_size();
    const float* v_row = v + t * config.kv_size();
    compute.kernels.rope({q + t * config.query_size(), cos, sin, config.num_attention_heads, half});
    compute.kernels.rope({k_row, cos, sin, kv_heads, half});
    const int64_t position = index.position[static_cast<size_t>(t)];
    const int64_t slot =
        static_cast<int64_t>(pages_of(t)[position / page_size]) * page_size + position % page_size;
    for (int head = 0; head < kv_heads; ++head) {
      kv.store(layer, head, KvPart::key, slot, k_row + head * config.head_dim);
      kv.store(layer, head, KvPart::value, slot, v_row + head * config.head_dim);
    }
  });

  struct Tile {
    int64_t token, count;
  };
  std::vector<Tile> tiles;  // none spans two sequences
  for (int64_t s = 0; s < batch.num_sequences; ++s) {
    for (int64_t t = batch.seq_start[s]; t < batch.seq_start[s + 1]; t += attention_tokens) {
      tiles.push_back({t, std::min<int64_t>(attention_tokens, batch.seq_start[s + 1] - t)});
    }
  }
  const int64_t scratch_size = attention_scratch(heads_per_kv, config.head_dim);
  float* scratch = state.reserve(compute.threads.size() * scratch_size);
  const int64_t longest =
      *std::max_element(batch.context_len, batch.context_len + batch.num_sequences);
  const int64_t window = group == kv_full ? INT64_MAX : config.sliding_window;
  const int64_t cost = 2 * heads_per_kv * config.head_dim * std::min(longest, window);
  const auto tasks = static_cast<int64_t>(tiles.size()) * kv_heads;
  parallel_for(compute.threads, tasks, cost, [&](int64_t task, int thread) {
    // The last tiles see the most keys: they come first.
    const Tile& tile = tiles[static_cast<size_t>((tasks - 1 - task) / kv_heads)];
    const int64_t kv_head = task % kv_heads;
    const int64_t first_element = kv_head * heads_per_kv * config.head_dim;
    AttentionArgs args{};
    args.q = q + tile.token * config.query_size() + first_element;
    args.q_stride = config.query_size();
    args.out = out + tile.token * config.query_size() + first_element;
    args.out_stride = config.query_size();
    args.sinks = weights.sinks + kv_head * heads_per_kv;
    args.tokens = tile.count;
    args.group = heads_per_kv;
    args.head_dim = config.head_dim;
    args.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
    args.pages = pages_of(tile.token);
    args.position = index.position[static_cast<size_t>(tile.token)];
    args.window = window;
    args.k = kv.base(layer, static_cast<int>(kv_head), KvPart::key);
    args.v = kv.base(layer, static_cast<int>(kv_head), KvPart::value);
    args.page_stride = kv.page_bytes();
    args.storage = kv.storage();
    args.scratch = scratch + thread * scratch_size;
    compute.kernels.attention(args);
  });
}

}  // namespace gptoss::cpu
