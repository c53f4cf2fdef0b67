// Steps of a backend on texts, as several tests need them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <vector>

#include "core/backend.h"
#include "tests/core/random_model.h"

namespace gptoss::test {

constexpr int64_t pages = 40;

// Text of a sequence and the pages it uses; pages do not overlap between `place`s.
struct Sequence {
  std::vector<int32_t> tokens;
  int place;
  int done = 0;
};

inline std::vector<int32_t> text(int length, int seed) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) {
    tokens.push_back((i * 7 + i * i * 3 + seed * 13) % small_config().vocab_size);
  }
  return tokens;
}

// Runs counts[i] tokens of each sequence in one step; appends their logits to logits[i].
inline void step(Backend& backend, std::vector<Sequence*> sequences, std::vector<int> counts,
                 std::vector<std::vector<float>*> logits) {
  constexpr int blocks = 5;
  const auto vocab = static_cast<size_t>(small_config().vocab_size);
  std::vector<int32_t> tokens, starts = {0}, lengths, full, sliding;
  for (size_t s = 0; s < sequences.size(); ++s) {
    Sequence& q = *sequences[s];
    tokens.insert(tokens.end(), q.tokens.begin() + q.done, q.tokens.begin() + q.done + counts[s]);
    q.done += counts[s];
    starts.push_back(static_cast<int32_t>(tokens.size()));
    lengths.push_back(q.done);
    for (int b = 0; b < blocks; ++b) {
      full.push_back((q.place * 2 * blocks + 2 * b) % pages);
      sliding.push_back((q.place * 2 * blocks + 2 * b + 1) % pages);
    }
  }
  std::vector<int32_t> rows(tokens.size());
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> out(tokens.size() * vocab);
  Batch batch;
  batch.num_tokens = batch.num_rows = static_cast<int32_t>(tokens.size());
  batch.num_sequences = static_cast<int32_t>(sequences.size());
  batch.max_blocks = blocks;
  batch.token_ids = tokens.data();
  batch.seq_start = starts.data();
  batch.context_len = lengths.data();
  batch.block_table[kv_full] = full.data();
  batch.block_table[kv_sliding] = sliding.data();
  batch.logits_rows = rows.data();
  Output output;
  output.logits = out.data();
  backend.step(batch, output);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto at = [&](size_t i) {
      return out.begin() + static_cast<std::ptrdiff_t>(static_cast<size_t>(starts[i]) * vocab);
    };
    logits[s]->insert(logits[s]->end(), at(s), at(s + 1));
  }
}

inline std::vector<float> run(Backend& backend, const std::vector<int32_t>& tokens, int chunk) {
  Sequence sequence{tokens, 0};
  std::vector<float> logits;
  const int length = static_cast<int>(tokens.size());
  while (sequence.done < length) {
    step(backend, {&sequence}, {std::min(chunk, length - sequence.done)}, {&logits});
  }
  return logits;
}

// Relative norm of the difference; infinite where the lengths differ.
inline double distance(const std::vector<float>& found, const std::vector<float>& wanted) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < wanted.size() && found.size() == wanted.size(); ++i) {
    difference += std::pow(static_cast<double>(found[i]) - wanted[i], 2);
    size += std::pow(static_cast<double>(wanted[i]), 2);
  }
  return found.size() == wanted.size() ? std::sqrt(difference / size) : INFINITY;
}

}  // namespace gptoss::test
