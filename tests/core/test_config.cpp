#include "core/config.h"

#include <limits>

#include "tests/core/random_model.h"
#include "tests/core/test.h"

using namespace gptoss;

namespace {

template <class Change>
void check_with(const Change& change) {
  ModelConfig c = test::small_config();
  change(c);
  check_config(c);
}

}  // namespace

TEST(a_good_one_passes) { check_config(test::small_config()); }

TEST(each_bad_field_is_named) {
  CHECK_THROWS(check_with([](auto& c) { c.num_hidden_layers = 0; }), "num_hidden_layers");
  CHECK_THROWS(check_with([](auto& c) { c.vocab_size = -1; }), "vocab_size must lie in");
  CHECK_THROWS(check_with([](auto& c) { c.hidden_size = 65; }), "multiple of 32, found 65");
  CHECK_THROWS(check_with([](auto& c) { c.intermediate_size = 33; }), "intermediate_size");
  CHECK_THROWS(check_with([](auto& c) { c.head_dim = 15; }), "head_dim must be even, found 15");
  CHECK_THROWS(check_with([](auto& c) { c.num_key_value_heads = 3; }), "multiple of");
  CHECK_THROWS(check_with([](auto& c) { c.num_key_value_heads = 0; }), "num_key_value_heads");
  CHECK_THROWS(check_with([](auto& c) { c.experts_per_token = 7; }), "experts_per_token");
  CHECK_THROWS(check_with([](auto& c) { c.sliding_window = 0; }), "sliding_window");
  CHECK_THROWS(check_with([](auto& c) { c.rope_theta = 0; }), "rope_theta");
  CHECK_THROWS(check_with([](auto& c) { c.rms_norm_eps = -1; }), "rms_norm_eps");
  CHECK_THROWS(check_with([](auto& c) { c.rope_scaling_factor = 1e9; }), "too long a context");
  CHECK_THROWS(
      check_with([](auto& c) { c.swiglu_limit = std::numeric_limits<float>::quiet_NaN(); }),
      "swiglu_limit");
}

TEST(derived_sizes) {
  const ModelConfig c = test::small_config();
  CHECK(c.query_size() == 64 && c.kv_size() == 32 && c.group_size() == 2);
  CHECK(c.is_sliding(0) && !c.is_sliding(1) && c.is_sliding(2));
  CHECK(c.context_length() == 131072);
}
