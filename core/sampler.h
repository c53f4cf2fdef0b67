// Logits → token. One row at a time; rows are independent of each other and of the batch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/batch.h"

namespace gptoss {

// Scratch that a thread keeps between rows.
struct SamplerScratch {
  std::vector<float> logits;        // (vocab) a copy, when penalties or biases change it
  std::vector<int32_t> ids;         // candidates
  std::vector<double> probability;  // (candidates)
};

struct Sampled {
  int32_t token;
  float logprob;  // natural log of the token's probability under softmax(logits), unmodified
};

// Order: bias, repetition, presence and frequency penalties, mask, temperature, top-k, top-p,
// min-p, draw.
//   repetition (CTRL, Keskar et al. 2019): positive logits are divided by it, others multiplied;
//   presence and frequency (OpenAI API): logit −= presence·[count > 0] + frequency·count;
//   top-p (Holtzman et al. 2020): the smallest set of most likely tokens whose mass reaches top_p;
//   min-p (Nguyen et al. 2024): tokens at least min_p times as likely as the most likely one.
// top_ids and top_logprobs, (n_logprobs), receive the most likely tokens of softmax(logits).
// Throws Error when a logit is NaN or all are −infinity.
Sampled sample_row(const float* logits, int32_t vocab_size, const Sampling& sampling, int row,
                   int32_t* top_ids, float* top_logprobs, SamplerScratch& scratch);

// Rows [first, first + rows) of the batch, whose logits (rows, vocab_size) these are, into the
// output. Does nothing where the batch does not sample.
void sample_rows(const float* logits, int32_t vocab_size, const Batch& batch, int64_t first,
                 int64_t rows, const Output& output, SamplerScratch& scratch);

// A uniform number in [0, 1) that depends on (seed, draw) alone, so that a seeded request repeats
// exactly whatever else runs beside it.
double uniform_draw(uint64_t seed, uint64_t draw);

}  // namespace gptoss
