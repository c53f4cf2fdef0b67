#include "core/batch.h"

#include <cmath>

#include "core/check.h"

namespace gptoss {

namespace {

void check_ragged(const char* name, const int32_t* start, const int32_t* ids, int rows,
                  int32_t vocab_size) {
  if (start == nullptr) {
    return;
  }
  GPTOSS_CHECK(start[0] == 0, "batch: {}_start[0] must be 0, found {}", name, start[0]);
  for (int r = 0; r < rows; ++r) {
    GPTOSS_CHECK(start[r + 1] >= start[r], "batch: {}_start must not fall, found {} after {}", name,
                 start[r + 1], start[r]);
    for (int32_t i = start[r]; i < start[r + 1]; ++i) {
      GPTOSS_CHECK(ids[i] >= 0 && ids[i] < vocab_size,
                   "batch: {} id must lie in 0..{}, found {} (row {})", name, vocab_size - 1,
                   ids[i], r);
    }
  }
}

void check_sampling(const Sampling& sampling, int rows, int32_t vocab_size) {
  for (int r = 0; r < rows; ++r) {
    const SamplingRow& row = sampling.rows[r];
    GPTOSS_CHECK(std::isfinite(row.temperature) && row.temperature >= 0.0f,
                 "batch: temperature must be finite and not negative, found {} (row {})",
                 row.temperature, r);
    GPTOSS_CHECK(row.top_k >= 0, "batch: top_k must not be negative, found {} (row {})", row.top_k,
                 r);
    GPTOSS_CHECK(row.top_p > 0.0f && row.top_p <= 1.0f,
                 "batch: top_p must lie in (0, 1], found {} (row {})", row.top_p, r);
    GPTOSS_CHECK(row.min_p >= 0.0f && row.min_p <= 1.0f,
                 "batch: min_p must lie in [0, 1], found {} (row {})", row.min_p, r);
    GPTOSS_CHECK(std::isfinite(row.repetition_penalty) && row.repetition_penalty > 0.0f,
                 "batch: repetition_penalty must be positive, found {} (row {})",
                 row.repetition_penalty, r);
    GPTOSS_CHECK(std::isfinite(row.presence_penalty) && std::isfinite(row.frequency_penalty),
                 "batch: penalties must be finite (row {})", r);
    GPTOSS_CHECK(row.n_logprobs >= 0 && row.n_logprobs <= vocab_size,
                 "batch: n_logprobs must lie in 0..{}, found {} (row {})", vocab_size,
                 row.n_logprobs, r);
  }
  check_ragged("history", sampling.history_start, sampling.history_ids, rows, vocab_size);
  check_ragged("bias", sampling.bias_start, sampling.bias_ids, rows, vocab_size);
  const int32_t biases = sampling.bias_start != nullptr ? sampling.bias_start[rows] : 0;
  for (int32_t i = 0; i < biases; ++i) {
    GPTOSS_CHECK(std::isfinite(sampling.bias_values[i]),
                 "batch: logit bias must be finite, found {}", sampling.bias_values[i]);
  }
  for (int r = 0; sampling.mask_rows != nullptr && r < rows; ++r) {
    GPTOSS_CHECK(sampling.mask_rows[r] >= -1 && sampling.mask_rows[r] < sampling.num_masks,
                 "batch: mask must lie in -1..{}, found {} (row {})", sampling.num_masks - 1,
                 sampling.mask_rows[r], r);
  }
}

void check_pages(const Batch& b, const ModelConfig& config, int64_t num_pages, int s,
                 int32_t first_new) {
  const int32_t last = b.context_len[s] - 1;
  for (int group = 0; group < kv_groups; ++group) {
    const auto* table = b.block_table[group] + static_cast<int64_t>(s) * b.max_blocks;
    const int64_t low = first_visible(config, static_cast<KvGroup>(group), first_new) / page_size;
    for (int64_t block = low; block <= last / page_size; ++block) {
      GPTOSS_CHECK(table[block] >= 0 && table[block] < num_pages,
                   "batch: sequence {} needs block {} of the {} layers: expected a page in 0..{}, "
                   "found {}",
                   s, block, group == kv_full ? "full" : "sliding", num_pages - 1, table[block]);
    }
  }
}

}  // namespace

TokenIndex index_batch(const Batch& b, const ModelConfig& config, int64_t num_pages) {
  GPTOSS_CHECK(b.num_tokens > 0 && b.num_sequences > 0, "batch: no tokens");
  GPTOSS_CHECK(b.seq_start[0] == 0 && b.seq_start[b.num_sequences] == b.num_tokens,
               "batch: seq_start must run from 0 to {}, found {} to {}", b.num_tokens,
               b.seq_start[0], b.seq_start[b.num_sequences]);
  TokenIndex index;
  index.position.resize(static_cast<size_t>(b.num_tokens));
  index.sequence.resize(static_cast<size_t>(b.num_tokens));
  for (int s = 0; s < b.num_sequences; ++s) {
    const int64_t count = static_cast<int64_t>(b.seq_start[s + 1]) - b.seq_start[s];
    GPTOSS_CHECK(count > 0 && b.seq_start[s + 1] <= b.num_tokens,
                 "batch: sequence {} must have new tokens inside the batch, found {}..{}", s,
                 b.seq_start[s], b.seq_start[s + 1]);
    GPTOSS_CHECK(b.context_len[s] >= count && b.context_len[s] <= config.context_length(),
                 "batch: context_len of sequence {} must lie in {}..{}, found {}", s, count,
                 config.context_length(), b.context_len[s]);
    const int64_t blocks = (static_cast<int64_t>(b.context_len[s]) + page_size - 1) / page_size;
    GPTOSS_CHECK(blocks <= b.max_blocks,
                 "batch: sequence {} needs {} blocks, block_table has room for {}", s, blocks,
                 b.max_blocks);
    const auto first_new = static_cast<int32_t>(b.context_len[s] - count);
    check_pages(b, config, num_pages, s, first_new);
    for (int64_t i = 0; i < count; ++i) {
      const auto t = static_cast<size_t>(b.seq_start[s] + i);
      index.position[t] = first_new + static_cast<int32_t>(i);
      index.sequence[t] = s;
    }
  }
  for (int t = 0; t < b.num_tokens; ++t) {
    GPTOSS_CHECK(b.token_ids[t] >= 0 && b.token_ids[t] < config.vocab_size,
                 "batch: token id must lie in 0..{}, found {} (token {})", config.vocab_size - 1,
                 b.token_ids[t], t);
  }
  for (int r = 0; r < b.num_rows; ++r) {
    const int32_t low = r ? b.logits_rows[r - 1] + 1 : 0;
    GPTOSS_CHECK(b.logits_rows[r] >= low && b.logits_rows[r] < b.num_tokens,
                 "batch: logits_rows must rise inside 0..{}, found {} at {}", b.num_tokens - 1,
                 b.logits_rows[r], r);
  }
  if (b.sampling != nullptr) {
    check_sampling(*b.sampling, b.num_rows, config.vocab_size);
  }
  return index;
}

}  // namespace gptoss
