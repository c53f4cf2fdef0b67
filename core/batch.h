// One step's work, ragged: the new tokens of all its sequences in one flat array, prompt chunks and
// single decode tokens mixed. Plain arrays that the caller owns; nothing here is copied.
#pragma once

#include <cstdint>
#include <vector>

#include "core/config.h"

namespace gptoss {

constexpr int page_size = 16;  // tokens in a KV page

// Layers fall into two groups with a block table each, because a sliding layer lets go of the pages
// behind its window while a full layer keeps all. One pool of pages serves both groups.
enum KvGroup : int { kv_full = 0, kv_sliding = 1 };
constexpr int kv_groups = 2;

// How one row of logits becomes a token. Mirrored by SAMPLING_DTYPE in gptoss/native/arrays.py.
struct SamplingRow {
  float temperature;         // 0: greedy, ties to the lowest id
  int32_t top_k;             // 0: off
  float top_p;               // 1: off
  float min_p;               // 0: off
  float repetition_penalty;  // 1: off; covers prompt and output
  float presence_penalty;    // 0: off; output only
  float frequency_penalty;   // 0: off; output only
  int32_t n_logprobs;        // how many of the most likely tokens to report
  uint64_t seed;
  uint64_t draw;  // index of this draw in its sequence: (seed, draw) fixes the random number
};
static_assert(sizeof(SamplingRow) == 48, "SAMPLING_DTYPE in gptoss/native/arrays.py mirrors this");

// Ragged lists per row: the entries of row r are [start[r], start[r + 1]).
struct Sampling {
  const SamplingRow* rows = nullptr;        // (R)
  const int32_t* history_start = nullptr;   // (R + 1)
  const int32_t* history_ids = nullptr;     // tokens seen so far, each once
  const int32_t* history_counts = nullptr;  // times in the output; 0: in the prompt only
  const int32_t* bias_start = nullptr;      // (R + 1)
  const int32_t* bias_ids = nullptr;
  const float* bias_values = nullptr;  // added to the logits
  // Which tokens may be drawn: bit i % 32 of word i / 32 of a mask stands for token i.
  const int32_t* mask_rows = nullptr;  // (R) the row's mask, or -1: any token
  const uint32_t* masks = nullptr;     // (M, mask_words(vocab))
  int32_t num_masks = 0;               // M
};

inline int64_t mask_words(int64_t vocab_size) { return (vocab_size + 31) / 32; }
inline bool in_mask(const uint32_t* mask, int32_t token) {
  return (mask[token / 32] >> (token % 32) & 1u) != 0;
}

struct Batch {
  int32_t num_tokens = 0;     // T
  int32_t num_sequences = 0;  // S
  int32_t num_rows = 0;       // R: tokens whose logits are wanted
  int32_t max_blocks = 0;     // B

  const int32_t* token_ids = nullptr;          // (T)
  const int32_t* seq_start = nullptr;          // (S + 1) offsets into T
  const int32_t* context_len = nullptr;        // (S) tokens so far, the new ones included
  const int32_t* block_table[kv_groups] = {};  // (S, B) page of logical block b, or -1
  const int32_t* logits_rows = nullptr;        // (R) ascending indices into T
  const Sampling* sampling = nullptr;          // null: no tokens are drawn
};

// What a step gives back. Null pointers are not filled in.
struct Output {
  int32_t* tokens = nullptr;      // (R)
  float* logprobs = nullptr;      // (R) of the drawn token, under the unmodified distribution
  int32_t max_logprobs = 0;       // N
  int32_t* top_ids = nullptr;     // (R, N) most likely first; -1 past the row's own n_logprobs
  float* top_logprobs = nullptr;  // (R, N)
  float* logits = nullptr;        // (R, vocab)
  float* hidden = nullptr;        // (layers, T, hidden) residual stream after each block
};

// What follows from a Batch: derived once, so that it cannot contradict it.
struct TokenIndex {
  std::vector<int32_t> position;  // (T)
  std::vector<int32_t> sequence;  // (T)
};

// Checks every index that a kernel will follow and derives positions. Throws Error naming the
// field, what was expected and what was found.
TokenIndex index_batch(const Batch& batch, const ModelConfig& config, int64_t num_pages);

// The first key position that position `query` sees in a layer of this group.
inline int64_t first_visible(const ModelConfig& config, KvGroup group, int64_t query) {
  if (group == kv_full) {
    return 0;
  }
  const int64_t first = query - config.sliding_window + 1;
  return first > 0 ? first : 0;
}

}  // namespace gptoss
