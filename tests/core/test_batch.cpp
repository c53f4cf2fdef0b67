#include "core/batch.h"

#include <limits>

#include "tests/core/random_model.h"
#include "tests/core/test.h"

using namespace gptoss;

namespace {

// Two sequences: 3 new tokens at positions 30..32, and one at position 0.
struct Example {
  ModelConfig config = test::small_config();  // window 20
  std::vector<int32_t> token_ids = {1, 2, 3, 4};
  std::vector<int32_t> seq_start = {0, 3, 4};
  std::vector<int32_t> context_len = {33, 1};
  std::vector<int32_t> full = {5, 6, 7, 8, -1, -1};
  std::vector<int32_t> sliding = {0, 1, 2, 3, -1, -1};
  std::vector<int32_t> rows = {2, 3};
  std::vector<SamplingRow> sampling_rows = std::vector<SamplingRow>(2, plain());
  std::vector<int32_t> history_start = {0, 0, 1}, history_ids = {7}, history_counts = {1};
  std::vector<int32_t> bias_start = {0, 1, 1}, bias_ids = {9};
  std::vector<float> bias_values = {0.5f};
  std::vector<int32_t> mask_rows = {-1, 1};
  std::vector<uint32_t> masks = std::vector<uint32_t>(64, ~0u);

  static SamplingRow plain() { return {1.0f, 0, 1.0f, 0.0f, 1.0f, 0.0f, 0.0f, 0, 0, 0}; }

  TokenIndex index() {
    const Sampling sampling = {sampling_rows.data(), history_start.data(),
                               history_ids.data(),   history_counts.data(),
                               bias_start.data(),    bias_ids.data(),
                               bias_values.data(),   mask_rows.data(),
                               masks.data(),         2};
    Batch b;
    b.num_tokens = static_cast<int32_t>(token_ids.size());
    b.num_sequences = static_cast<int32_t>(context_len.size());
    b.num_rows = static_cast<int32_t>(rows.size());
    b.max_blocks = 3;
    b.token_ids = token_ids.data();
    b.seq_start = seq_start.data();
    b.context_len = context_len.data();
    b.block_table[kv_full] = full.data();
    b.block_table[kv_sliding] = sliding.data();
    b.logits_rows = rows.data();
    b.sampling = &sampling;
    return index_batch(b, config, 9);
  }
};

template <class Change>
void index_with(const Change& change) {
  Example example;
  change(example);
  example.index();
}

}  // namespace

TEST(positions_follow) {
  const TokenIndex index = Example().index();
  CHECK(index.position == std::vector<int32_t>({30, 31, 32, 0}));
  CHECK(index.sequence == std::vector<int32_t>({0, 0, 0, 1}));
}

TEST(sliding_layers_need_their_window_only) {
  // The first new token, 30, sees keys 11..30: block 0 is still needed.
  CHECK_THROWS(index_with([](auto& e) { e.sliding[0] = -1; }), "block 0 of the sliding layers");
  // A window of 15: keys 16..30, block 0 is not.
  index_with([](auto& e) {
    e.config.sliding_window = 15;
    e.sliding[0] = -1;
  });
  CHECK_THROWS(index_with([](auto& e) {
                 e.config.sliding_window = 16;
                 e.sliding[0] = -1;
               }),
               "block 0 of the sliding layers");
  CHECK_THROWS(index_with([](auto& e) { e.full[0] = -1; }), "block 0 of the full layers");
}

TEST(each_wrong_field_is_named) {
  CHECK_THROWS(index_with([](auto& e) { e.token_ids[1] = 50; }), "token id must lie in 0..49");
  CHECK_THROWS(index_with([](auto& e) { e.token_ids[3] = -1; }), "found -1 (token 3)");
  CHECK_THROWS(index_with([](auto& e) { e.seq_start = {0, 3, 3}; }), "seq_start must run from 0");
  CHECK_THROWS(index_with([](auto& e) { e.seq_start = {1, 3, 4}; }), "seq_start must run from 0");
  CHECK_THROWS(index_with([](auto& e) { e.seq_start = {0, 9, 4}; }), "sequence 0 must have");
  CHECK_THROWS(index_with([](auto& e) { e.seq_start = {0, 0, 4}; }), "sequence 0 must have");
  CHECK_THROWS(index_with([](auto& e) { e.seq_start = {0, -2, 4}; }), "sequence 0 must have");
  CHECK_THROWS(index_with([](auto& e) { e.context_len[0] = 2; }), "context_len of sequence 0");
  CHECK_THROWS(index_with([](auto& e) { e.context_len[1] = 200000; }), "context_len of sequence 1");
  CHECK_THROWS(index_with([](auto& e) { e.context_len[0] = 49; }), "needs 4 blocks");
  CHECK_THROWS(index_with([](auto& e) { e.full[2] = 9; }), "expected a page in 0..8, found 9");
  CHECK_THROWS(index_with([](auto& e) { e.sliding[3] = -2; }), "sequence 1 needs block 0");
  CHECK_THROWS(index_with([](auto& e) { e.rows = {3, 3}; }), "logits_rows must rise");
  CHECK_THROWS(index_with([](auto& e) { e.rows = {0, 4}; }), "logits_rows must rise");
  CHECK_THROWS(index_with([](auto& e) { e.token_ids.clear(); }), "no tokens");
}

TEST(each_wrong_sampling_parameter_is_named) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto with = [](auto change) { index_with([&](auto& e) { change(e.sampling_rows[1]); }); };
  CHECK_THROWS(with([](auto& r) { r.temperature = -1; }), "temperature");
  CHECK_THROWS(with([&](auto& r) { r.temperature = nan; }), "temperature");
  CHECK_THROWS(with([](auto& r) { r.top_k = -1; }), "top_k");
  CHECK_THROWS(with([](auto& r) { r.top_p = 0; }), "top_p");
  CHECK_THROWS(with([&](auto& r) { r.top_p = nan; }), "top_p");
  CHECK_THROWS(with([](auto& r) { r.min_p = 1.5f; }), "min_p");
  CHECK_THROWS(with([](auto& r) { r.repetition_penalty = 0; }), "repetition_penalty");
  CHECK_THROWS(with([&](auto& r) { r.presence_penalty = nan; }), "penalties");
  CHECK_THROWS(with([](auto& r) { r.n_logprobs = 51; }), "n_logprobs");
  CHECK_THROWS(index_with([](auto& e) { e.history_ids[0] = 50; }), "history id must lie in");
  CHECK_THROWS(index_with([](auto& e) { e.history_start = {0, 1, 0}; }), "must not fall");
  CHECK_THROWS(index_with([](auto& e) { e.bias_ids[0] = -1; }), "bias id must lie in");
  CHECK_THROWS(index_with([&](auto& e) { e.bias_values[0] = nan; }), "logit bias must be finite");
  CHECK_THROWS(index_with([](auto& e) { e.mask_rows[0] = 2; }), "mask must lie in -1..1, found 2");
  CHECK_THROWS(index_with([](auto& e) { e.mask_rows[0] = -2; }), "mask must lie in");
}
