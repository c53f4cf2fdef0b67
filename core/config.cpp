#include "core/config.h"

#include <cmath>

#include "core/check.h"
#include "core/dtype.h"

namespace gptoss {

namespace {

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  GPTOSS_CHECK(value >= low && value <= high, "config: {} must lie in {}..{}, found {}", name, low,
               high, value);
}

void check_positive(const char* name, double value) {
  GPTOSS_CHECK(std::isfinite(value) && value > 0.0, "config: {} must be positive, found {}", name,
               value);
}

}  // namespace

void check_config(const ModelConfig& c) {
  check_range("num_hidden_layers", c.num_hidden_layers, 1, 1024);
  check_range("num_experts", c.num_experts, 1, 4096);
  check_range("experts_per_token", c.experts_per_token, 1, c.num_experts);
  check_range("vocab_size", c.vocab_size, 1, 1 << 24);
  check_range("hidden_size", c.hidden_size, mx_block, 1 << 20);
  check_range("intermediate_size", c.intermediate_size, mx_block, 1 << 20);
  check_range("head_dim", c.head_dim, 2, 1024);
  check_range("num_attention_heads", c.num_attention_heads, 1, 4096);
  check_range("num_key_value_heads", c.num_key_value_heads, 1, c.num_attention_heads);
  check_range("sliding_window", c.sliding_window, 1, 1 << 24);
  check_range("initial_context_length", c.initial_context_length, 1, 1 << 24);
  GPTOSS_CHECK(c.hidden_size % mx_block == 0,
               "config: hidden_size must be a multiple of {}, found {}", mx_block, c.hidden_size);
  GPTOSS_CHECK(c.intermediate_size % mx_block == 0,
               "config: intermediate_size must be a multiple of {}, found {}", mx_block,
               c.intermediate_size);
  GPTOSS_CHECK(c.head_dim % 2 == 0, "config: head_dim must be even, found {}", c.head_dim);
  GPTOSS_CHECK(c.num_attention_heads % c.num_key_value_heads == 0,
               "config: num_attention_heads ({}) must be a multiple of num_key_value_heads ({})",
               c.num_attention_heads, c.num_key_value_heads);
  check_positive("rope_theta", c.rope_theta);
  check_positive("rope_scaling_factor", c.rope_scaling_factor);
  check_positive("rope_ntk_alpha", c.rope_ntk_alpha);
  check_positive("rope_ntk_beta", c.rope_ntk_beta);
  check_positive("swiglu_limit", c.swiglu_limit);
  check_positive("rms_norm_eps", c.rms_norm_eps);
  GPTOSS_CHECK(
      c.initial_context_length * c.rope_scaling_factor < (1 << 30),
      "config: initial_context_length {} times rope_scaling_factor {} is too long a context",
      c.initial_context_length, c.rope_scaling_factor);
}

}  // namespace gptoss
