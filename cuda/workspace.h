// Device memory for a step's arrays: one block, which grows and is kept, so that a steady state
// allocates nothing.
#pragma once

#include <algorithm>

#include "core/config.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

struct Workspace {
  float *x = nullptr, *qkv = nullptr, *cos = nullptr, *sin = nullptr, *weights = nullptr;
  float *expert_out = nullptr, *partial = nullptr, *parts = nullptr, *logits = nullptr;
  bf16 *t = nullptr, *q = nullptr, *attended = nullptr, *h = nullptr;
  int32_t *experts = nullptr, *start = nullptr, *active = nullptr;
  int32_t *pair_of_row = nullptr, *row_of_pair = nullptr, *ended = nullptr;

  // Room for at least this many tokens, rows of logits and splits of decoded tokens' keys.
  void reserve(const ModelConfig& c, int64_t tokens, int64_t rows, int splits,
               const Stream& stream) {
    if (tokens <= tokens_ && rows <= rows_ && splits <= splits_) {
      return;
    }
    const auto grown = [](int64_t wanted, int64_t now) {
      return wanted <= now ? now : std::max(wanted, now * 3 / 2);
    };
    const int64_t max_tokens = grown(tokens, tokens_);
    const int64_t max_rows = std::min(grown(rows, rows_), max_tokens);
    const int max_splits = std::max(splits, splits_);
    synchronize(stream);
    memory_ = DeviceMemory();       // the old one first: both may not fit
    tokens_ = rows_ = splits_ = 0;  // what there is room for if there is no room
    memory_ = DeviceMemory(lay_out(c, max_tokens, max_rows, max_splits));
    lay_out(c, max_tokens, max_rows, max_splits);
    tokens_ = max_tokens;
    rows_ = max_rows;
    splits_ = max_splits;
    zero_async(ended, static_cast<size_t>(tokens_ * c.num_key_value_heads) * sizeof(int32_t),
               stream);
    ++generation_;
  }

  // Changes whenever the arrays move.
  int64_t generation() const { return generation_; }

private:
  size_t lay_out(const ModelConfig& c, int64_t tokens, int64_t rows, int splits) {
    size_t end = 0;
    const auto array = [&](auto*& pointer, int64_t count) {
      using T = std::remove_reference_t<decltype(*pointer)>;
      constexpr size_t alignment = 256;
      pointer = memory_.as<unsigned char>() == nullptr
                    ? nullptr
                    : reinterpret_cast<T*>(memory_.as<unsigned char>() + end);
      end += (static_cast<size_t>(count) * sizeof(T) + alignment - 1) / alignment * alignment;
    };
    const int64_t pairs = tokens * c.experts_per_token, hidden = c.hidden_size;
    array(x, tokens * hidden);
    array(partial, tokens * hidden);
    array(t, tokens * hidden);
    array(qkv, tokens * (c.query_size() + 2 * c.kv_size()));
    array(cos, tokens * c.head_dim / 2);
    array(sin, tokens * c.head_dim / 2);
    array(q, tokens * c.query_size());
    array(attended, tokens * c.query_size());
    // Prompts are not split, and beyond this many tokens nothing is.
    array(parts, decode_part_floats(static_cast<int>(std::min<int64_t>(tokens, 512)),
                                    c.num_attention_heads, c.head_dim, splits));
    array(ended, tokens * c.num_key_value_heads);
    array(experts, pairs);
    array(weights, pairs);
    array(start, c.num_experts + 1);
    array(active, c.num_experts + 1);
    array(pair_of_row, pairs);
    array(row_of_pair, pairs);
    array(h, pairs * c.intermediate_size);
    array(expert_out, pairs * hidden);
    array(logits, rows * c.vocab_size);
    return end;
  }

  DeviceMemory memory_;
  int64_t tokens_ = 0, rows_ = 0, generation_ = 0;
  int splits_ = 0;
};

}  // namespace gptoss::cuda
