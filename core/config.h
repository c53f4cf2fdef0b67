// The hyper-parameters of a gpt-oss model, under the key names of OpenAI's original config.json.
#pragma once

#include <cstdint>

namespace gptoss {

struct ModelConfig {
  int32_t num_hidden_layers = 0;
  int32_t num_experts = 0;
  int32_t experts_per_token = 4;
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  int32_t intermediate_size = 0;
  int32_t head_dim = 0;
  int32_t num_attention_heads = 0;
  int32_t num_key_value_heads = 0;
  int32_t sliding_window = 128;
  int32_t initial_context_length = 4096;
  double rope_theta = 150000.0;
  double rope_scaling_factor = 32.0;
  double rope_ntk_alpha = 1.0;  // YaRN's beta_slow
  double rope_ntk_beta = 32.0;  // YaRN's beta_fast
  float swiglu_limit = 7.0f;
  float rms_norm_eps = 1e-5f;

  // Even layers see a window, odd layers everything before them.
  bool is_sliding(int layer) const { return layer % 2 == 0; }
  int query_size() const { return num_attention_heads * head_dim; }
  int kv_size() const { return num_key_value_heads * head_dim; }
  // Query heads that read one KV head.
  int group_size() const { return num_attention_heads / num_key_value_heads; }
  int64_t context_length() const {
    const double factor = rope_scaling_factor > 1.0 ? rope_scaling_factor : 1.0;
    return static_cast<int64_t>(initial_context_length * factor);
  }
};

// Throws Error when a field is out of range or contradicts another. The Python side has checked
// config.json with better messages; this guards the kernels' own assumptions.
void check_config(const ModelConfig& config);

}  // namespace gptoss
