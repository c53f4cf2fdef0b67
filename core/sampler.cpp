#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace gptoss {

namespace {

// SplitMix64's finaliser (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

constexpr uint64_t golden_gamma = 0x9e3779b97f4a7c15ull;

// Most likely first, ties to the lowest id: a total order, so every selection is deterministic.
struct MoreLikely {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// log Σ exp(logits), in float64.
double log_sum_exp(const float* logits, int32_t n, float max) {
  double sum = 0.0;
  for (int32_t i = 0; i < n; ++i) {
    sum += std::exp(static_cast<double>(logits[i]) - max);
  }
  return max + std::log(sum);
}

// The lowest id of the largest. Two passes: with one, Clang waits in each step for the load of the
// largest so far, by its index. Lanes, so that the largest come from vector instructions.
int32_t argmax(const float* logits, int32_t n) {
  constexpr int32_t lanes = 16;
  float largest[lanes];
  std::fill_n(largest, lanes, logits[0]);
  const auto keep = [](float& best, float value) { best = value > best ? value : best; };
  int32_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int32_t lane = 0; lane < lanes; ++lane) {
      keep(largest[lane], logits[i + lane]);
    }
  }
  for (; i < n; ++i) {
    keep(largest[0], logits[i]);
  }
  for (const float value : largest) {
    keep(largest[0], value);
  }
  const float* found = std::find(logits, logits + n, largest[0]);
  return found == logits + n ? 0 : static_cast<int32_t>(found - logits);  // the first is NaN
}

// The first `count` candidates of `ids` in order of likelihood.
void select_most_likely(std::vector<int32_t>& ids, size_t count, const float* logits) {
  const auto middle = ids.begin() + static_cast<std::ptrdiff_t>(std::min(count, ids.size()));
  if (middle != ids.end()) {
    std::nth_element(ids.begin(), middle, ids.end(), MoreLikely{logits});
  }
  std::sort(ids.begin(), middle, MoreLikely{logits});
}

bool has_mask(const Sampling& s, int row) {
  return s.mask_rows != nullptr && s.mask_rows[row] >= 0;
}

bool changes_logits(const Sampling& s, int row) {
  const SamplingRow& p = s.rows[row];
  const bool has_history =
      s.history_start != nullptr && s.history_start[row + 1] > s.history_start[row];
  const bool has_bias = s.bias_start != nullptr && s.bias_start[row + 1] > s.bias_start[row];
  return has_mask(s, row) || has_bias ||
         (has_history && (p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f ||
                          p.frequency_penalty != 0.0f));
}

void apply_bias_and_penalties(float* logits, const Sampling& s, int row) {
  const SamplingRow& p = s.rows[row];
  if (s.bias_start != nullptr) {
    for (int32_t i = s.bias_start[row]; i < s.bias_start[row + 1]; ++i) {
      logits[s.bias_ids[i]] += s.bias_values[i];
    }
  }
  if (s.history_start == nullptr) {
    return;
  }
  for (int32_t i = s.history_start[row]; i < s.history_start[row + 1]; ++i) {
    float& logit = logits[s.history_ids[i]];
    const auto count = static_cast<float>(s.history_counts[i]);
    logit = logit > 0.0f ? logit / p.repetition_penalty : logit * p.repetition_penalty;
    if (count > 0.0f) {
      logit -= p.presence_penalty + p.frequency_penalty * count;
    }
  }
}

void apply_mask(float* logits, int32_t vocab_size, const Sampling& s, int row) {
  const uint32_t* mask = s.masks + s.mask_rows[row] * mask_words(vocab_size);
  for (int32_t i = 0; i < vocab_size; ++i) {
    if (!in_mask(mask, i)) {
      logits[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Keeps the candidates that top-k, top-p and min-p leave. `probability` receives their unnormalised
// weights.
void keep_candidates(const float* logits, int32_t vocab_size, const SamplingRow& p,
                     SamplerScratch& scratch) {
  std::vector<int32_t>& ids = scratch.ids;
  std::vector<double>& weight = scratch.probability;
  ids.resize(static_cast<size_t>(vocab_size));
  std::iota(ids.begin(), ids.end(), 0);
  const float max = logits[argmax(logits, vocab_size)];
  const double inverse_temperature = 1.0 / static_cast<double>(p.temperature);
  const auto weigh = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - max) * inverse_temperature);
  };

  if (p.top_k > 0 && p.top_k < vocab_size) {
    select_most_likely(ids, static_cast<size_t>(p.top_k), logits);
    ids.resize(static_cast<size_t>(p.top_k));
  }
  if (p.top_p < 1.0f) {
    double total = 0.0;
    for (const int32_t id : ids) {
      total += weigh(id);
    }
    // Sort ever more of the candidates until their mass reaches top_p: usually a few dozen do.
    const double wanted = static_cast<double>(p.top_p) * total;
    for (size_t sorted = 64;; sorted *= 8) {
      select_most_likely(ids, sorted, logits);
      const size_t end = std::min(sorted, ids.size());
      double mass = 0.0;
      size_t keep = 0;
      while (keep < end && mass < wanted) {
        mass += weigh(ids[keep++]);
      }
      if (mass >= wanted || end == ids.size()) {
        ids.resize(std::max<size_t>(keep, 1));
        break;
      }
    }
  }
  if (p.min_p > 0.0f) {
    const auto unlikely = [&](int32_t id) { return weigh(id) < static_cast<double>(p.min_p); };
    ids.erase(std::remove_if(ids.begin(), ids.end(), unlikely), ids.end());
  }
  // Drawn in the order of ids on every device, so that a uniform number means the same token.
  if (!std::is_sorted(ids.begin(), ids.end())) {  // they are where nothing was left out
    std::sort(ids.begin(), ids.end());
  }
  weight.resize(ids.size());
  std::transform(ids.begin(), ids.end(), weight.begin(), weigh);
}

int32_t draw_candidate(const SamplerScratch& scratch, double uniform) {
  const double total = std::accumulate(scratch.probability.begin(), scratch.probability.end(), 0.0);
  double left = uniform * total;
  int32_t last = scratch.ids[0];
  for (size_t i = 0; i < scratch.ids.size(); ++i) {
    if (scratch.probability[i] <= 0.0) {
      continue;
    }
    last = scratch.ids[i];
    left -= scratch.probability[i];
    if (left < 0.0) {
      break;
    }
  }
  return last;  // rounding may leave a remainder: the last possible token takes it
}

}  // namespace

double uniform_draw(uint64_t seed, uint64_t draw) {
  const uint64_t bits = mix(mix(seed + golden_gamma) + (draw + 1) * golden_gamma);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

Sampled sample_row(const float* logits, int32_t vocab_size, const Sampling& sampling, int row,
                   int32_t* top_ids, float* top_logprobs, SamplerScratch& scratch) {
  const SamplingRow& p = sampling.rows[row];
  for (int32_t i = 0; i < vocab_size; ++i) {
    GPTOSS_CHECK(!std::isnan(logits[i]), "logits of row {}: NaN at token {}", row, i);
  }
  const float max = logits[argmax(logits, vocab_size)];
  GPTOSS_CHECK(std::isfinite(max), "logits of row {}: the largest must be finite, found {}", row,
               max);
  const double normaliser = log_sum_exp(logits, vocab_size, max);

  if (p.n_logprobs > 0) {
    scratch.ids.resize(static_cast<size_t>(vocab_size));
    std::iota(scratch.ids.begin(), scratch.ids.end(), 0);
    select_most_likely(scratch.ids, static_cast<size_t>(p.n_logprobs), logits);
    for (int32_t i = 0; i < p.n_logprobs; ++i) {
      top_ids[i] = scratch.ids[static_cast<size_t>(i)];
      top_logprobs[i] = static_cast<float>(logits[top_ids[i]] - normaliser);
    }
  }

  const float* modified = logits;
  if (changes_logits(sampling, row)) {
    scratch.logits.assign(logits, logits + vocab_size);
    apply_bias_and_penalties(scratch.logits.data(), sampling, row);
    if (has_mask(sampling, row)) {
      apply_mask(scratch.logits.data(), vocab_size, sampling, row);
    }
    modified = scratch.logits.data();
    GPTOSS_CHECK(std::isfinite(modified[argmax(modified, vocab_size)]),
                 "logits of row {}: bias, penalties and mask leave no token possible", row);
  }
  int32_t token = 0;
  if (p.temperature == 0.0f) {
    token = argmax(modified, vocab_size);
  } else {
    keep_candidates(modified, vocab_size, p, scratch);
    token = draw_candidate(scratch, uniform_draw(p.seed, p.draw));
  }
  return {token, static_cast<float>(logits[token] - normaliser)};
}

void sample_rows(const float* logits, int32_t vocab_size, const Batch& batch, int64_t first,
                 int64_t rows, const Output& output, SamplerScratch& scratch) {
  if (batch.sampling == nullptr) {
    return;
  }
  for (int64_t r = first; r < first + rows; ++r) {
    int32_t* top_ids = output.top_ids + r * output.max_logprobs;
    float* top_logprobs = output.top_logprobs + r * output.max_logprobs;
    std::fill(top_ids, top_ids + output.max_logprobs, -1);
    std::fill(top_logprobs, top_logprobs + output.max_logprobs, 0.0f);
    GPTOSS_CHECK(batch.sampling->rows[r].n_logprobs <= output.max_logprobs,
                 "batch: n_logprobs is {} (row {}), the output has room for {}",
                 batch.sampling->rows[r].n_logprobs, r, output.max_logprobs);
    const Sampled sampled =
        sample_row(logits + (r - first) * vocab_size, vocab_size, *batch.sampling,
                   static_cast<int>(r), top_ids, top_logprobs, scratch);
    output.tokens[r] = sampled.token;
    output.logprobs[r] = sampled.logprob;
  }
}

}  // namespace gptoss
