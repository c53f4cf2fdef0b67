#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "tests/core/test.h"

using namespace gptoss;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

struct Draw {
  explicit Draw(std::vector<float> values = {}) : logits(std::move(values)) {}

  std::vector<float> logits;
  SamplingRow row = {1.0f, 0, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 42, 0};
  std::vector<int32_t> history_ids, history_counts, bias_ids;
  std::vector<float> bias_values;
  std::vector<uint32_t> mask;
  std::vector<int32_t> top_ids = std::vector<int32_t>(8, -1);
  std::vector<float> top_logprobs = std::vector<float>(8, 0.0f);

  Sampled once() {
    const int32_t history[2] = {0, static_cast<int32_t>(history_ids.size())};
    const int32_t bias[2] = {0, static_cast<int32_t>(bias_ids.size())};
    const int32_t mask_row = mask.empty() ? -1 : 0;
    const Sampling sampling = {&row,
                               history,
                               history_ids.data(),
                               history_counts.data(),
                               bias,
                               bias_ids.data(),
                               bias_values.data(),
                               &mask_row,
                               mask.data(),
                               mask.empty() ? 0 : 1};
    SamplerScratch scratch;
    return sample_row(logits.data(), static_cast<int32_t>(logits.size()), sampling, 0,
                      top_ids.data(), top_logprobs.data(), scratch);
  }

  // How often each token comes in `draws` draws.
  std::vector<int> many(int draws) {
    std::vector<int> counts(logits.size());
    for (int i = 0; i < draws; ++i) {
      row.draw = static_cast<uint64_t>(i);
      ++counts[static_cast<size_t>(once().token)];
    }
    return counts;
  }
};

std::vector<float> logs(std::vector<float> probabilities) {
  std::transform(probabilities.begin(), probabilities.end(), probabilities.begin(),
                 [](float p) { return std::log(p); });
  return probabilities;
}

}  // namespace

// The largest is looked for in lanes: every place of it, in blocks and in what is left of them.
TEST(greedy_takes_the_first_of_the_largest) {
  for (int32_t count = 1; count <= 70; ++count) {
    for (int32_t best = 0; best < count; ++best) {
      std::vector<float> values(static_cast<size_t>(count), -infinity);
      for (int32_t i = 0; i < count; ++i) {
        values[static_cast<size_t>(i)] =
            i >= best && i % 3 == best % 3 ? -0.5f : -1.0f - static_cast<float>(i);
      }
      Draw draw(values);
      draw.row.temperature = 0;
      CHECK(draw.once().token == best);
    }
  }
  Draw zeros({-1.0f, -0.0f, 0.0f});
  zeros.row.temperature = 0;
  CHECK(zeros.once().token == 1);
}

TEST(greedy_takes_the_largest_and_of_equals_the_first) {
  Draw draw{{1, 5, 2, 5}};
  draw.row.temperature = 0;
  CHECK(draw.once().token == 1);
  draw.logits = {-infinity, -3, -infinity};
  CHECK(draw.once().token == 1);
}

TEST(frequencies_are_the_softmax) {
  Draw draw{logs({0.5f, 0.3f, 0.15f, 0.05f})};
  const std::vector<int> counts = draw.many(20000);
  const double wanted[] = {10000, 6000, 3000, 1000};
  double chi_squared = 0;
  for (size_t i = 0; i < 4; ++i) {
    chi_squared += (counts[i] - wanted[i]) * (counts[i] - wanted[i]) / wanted[i];
  }
  CHECK_NEAR(chi_squared, 0, 21.1);  // three degrees of freedom: 99.99%
}

TEST(temperature_sharpens) {
  Draw draw{logs({0.5f, 0.3f, 0.2f})};
  draw.row.temperature = 0.5f;  // squares the odds: 25 : 9 : 4
  const std::vector<int> counts = draw.many(19000);
  CHECK_NEAR(counts[0], 12500, 350);
  CHECK_NEAR(counts[2], 2000, 220);
}

TEST(top_k_keeps_k) {
  Draw draw{logs({0.1f, 0.4f, 0.2f, 0.3f})};
  draw.row.top_k = 2;
  const std::vector<int> counts = draw.many(2000);
  CHECK(counts[0] == 0 && counts[2] == 0 && counts[1] > 900 && counts[3] > 600);
  draw.row.top_k = 1;
  CHECK(draw.many(200)[1] == 200);
}

TEST(top_p_keeps_the_smallest_set_that_reaches_it) {
  Draw draw{logs({0.05f, 0.5f, 0.15f, 0.3f})};
  draw.row.top_p = 0.75f;
  std::vector<int> counts = draw.many(2000);
  CHECK(counts[0] == 0 && counts[2] == 0 && counts[1] > 0 && counts[3] > 0);
  draw.row.top_p = 0.85f;
  counts = draw.many(2000);
  CHECK(counts[0] == 0 && counts[2] > 0);
  draw.row.top_p = 1e-6f;
  CHECK(draw.many(200)[1] == 200);
}

TEST(top_p_over_a_large_vocabulary) {
  // Nearly flat: the sorted part must grow far beyond its first size.
  Draw draw;
  for (int i = 0; i < 5000; ++i) {
    draw.logits.push_back(static_cast<float>(i) * 1e-6f);
  }
  draw.row.top_p = 0.5f;
  const std::vector<int> counts = draw.many(300);
  CHECK(std::all_of(counts.begin(), counts.begin() + 2480, [](int c) { return c == 0; }));
  CHECK(std::any_of(counts.begin() + 2500, counts.begin() + 3000, [](int c) { return c > 0; }));
}

TEST(min_p_is_relative_to_the_largest) {
  Draw draw{logs({0.5f, 0.3f, 0.12f, 0.08f})};
  draw.row.min_p = 0.2f;
  const std::vector<int> counts = draw.many(2000);
  CHECK(counts[3] == 0 && counts[2] > 0);
}

TEST(penalties_and_bias) {
  Draw draw{{2.0f, 1.9f, -1.0f}};
  draw.row.temperature = 0;
  draw.history_ids = {0};
  draw.history_counts = {0};  // in the prompt alone
  draw.row.presence_penalty = 5;
  draw.row.frequency_penalty = 5;
  CHECK(draw.once().token == 0);
  draw.history_counts = {1};
  CHECK(draw.once().token == 1);
  draw.row.presence_penalty = 0;
  draw.row.frequency_penalty = 0.04f;
  CHECK(draw.once().token == 0);  // 1.96
  draw.history_counts = {3};
  CHECK(draw.once().token == 1);  // 1.88
  draw.row.frequency_penalty = 0;
  draw.history_counts = {0};
  draw.row.repetition_penalty = 1.1f;  // the prompt counts
  CHECK(draw.once().token == 1);
  draw.logits = {-1.0f, -1.05f};
  CHECK(draw.once().token == 1);  // negative logits are multiplied
  draw.row.repetition_penalty = 1;
  draw.bias_ids = {0};
  draw.bias_values = {-100};
  CHECK(draw.once().token == 1);
}

TEST(a_mask_leaves_out_whatever_is_likely) {
  Draw draw{logs(std::vector<float>(70, 1.0f / 70))};
  draw.logits[0] = 50.0f;
  draw.mask = {1u << 5, 1u << 31, 1u << 2};  // 5, 63 and 66
  const std::vector<int> counts = draw.many(300);
  CHECK(counts[5] + counts[63] + counts[66] == 300);
  CHECK(counts[5] > 60 && counts[63] > 60 && counts[66] > 60);
  draw.row.temperature = 0;
  CHECK(draw.once().token == 5);
  draw.bias_ids = {66, 1};
  draw.bias_values = {1, 100};  // a bias opens nothing
  CHECK(draw.once().token == 66);
  CHECK_NEAR(draw.once().logprob, std::log(1.0 / 70) - 50, 1e-4);
  draw.mask = {0, 0, 0};
  CHECK_THROWS(draw.once(), "mask leave no token possible");
}

TEST(logprobs_are_of_the_unmodified_distribution) {
  Draw draw{logs({0.125f, 0.5f, 0.25f, 0.125f})};
  draw.row.n_logprobs = 3;
  draw.row.temperature = 0;
  draw.bias_ids = {2};
  draw.bias_values = {50};
  const Sampled sampled = draw.once();
  CHECK(sampled.token == 2);
  CHECK_NEAR(sampled.logprob, std::log(0.25), 1e-6);
  CHECK(draw.top_ids[0] == 1 && draw.top_ids[1] == 2 && draw.top_ids[2] == 0);
  CHECK_NEAR(draw.top_logprobs[0], std::log(0.5), 1e-6);
  CHECK_NEAR(draw.top_logprobs[2], std::log(0.125), 1e-6);
  CHECK(draw.top_ids[3] == -1);
}

TEST(huge_logits_do_not_overflow) {
  Draw draw{{1e30f, -1e30f, 1e30f}};
  const std::vector<int> counts = draw.many(200);
  CHECK(counts[1] == 0 && counts[0] > 50 && counts[2] > 50);
}

TEST(nan_and_nothing_possible_are_errors) {
  Draw draw{{1, std::numeric_limits<float>::quiet_NaN(), 2}};
  CHECK_THROWS(draw.once(), "NaN at token 1");
  draw.logits = {-infinity, -infinity};
  CHECK_THROWS(draw.once(), "the largest must be finite");
  draw.logits = {1, infinity};
  CHECK_THROWS(draw.once(), "the largest must be finite");
}

TEST(a_seed_and_a_draw_fix_the_number) {
  CHECK(uniform_draw(1, 2) == uniform_draw(1, 2));
  CHECK(uniform_draw(1, 2) != uniform_draw(1, 3));
  CHECK(uniform_draw(1, 2) != uniform_draw(2, 2));
  double sum = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const double u = uniform_draw(i, 0);  // seeds of neighbours are as good as draws
    CHECK(u >= 0 && u < 1);
    sum += u;
  }
  CHECK_NEAR(sum / 10000, 0.5, 0.015);  // five deviations
}
