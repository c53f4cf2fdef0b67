// A small model of random weights, kept in memory, for tests that need a whole one.
#pragma once

#include <map>
#include <random>
#include <string>
#include <vector>

#include "core/weights.h"

namespace gptoss::test {

inline ModelConfig small_config() {
  ModelConfig c;
  c.num_hidden_layers = 3;  // an odd number: one more sliding layer than full ones
  c.num_experts = 6;
  c.experts_per_token = 2;
  c.vocab_size = 50;
  c.hidden_size = 64;
  c.intermediate_size = 32;
  c.head_dim = 16;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.sliding_window = 20;  // pages do not divide it
  return c;
}

class RandomSource final : public WeightSource {
public:
  explicit RandomSource(const ModelConfig& config) : config_(config) {}

  Tensor tensor(const std::string& name) override {
    Stored& stored = tensors_[name];
    if (stored.bytes.empty()) {
      fill(name, stored);
    }
    ++asked;
    return {stored.bytes.data(), stored.dtype, stored.shape};
  }
  void release(const std::string&) override {}
  bool experts_are_mxfp4() const override { return true; }

  int asked = 0;

private:
  struct Stored {
    std::vector<uint8_t> bytes;
    DType dtype = DType::bf16;
    std::vector<int64_t> shape;
  };

  static bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
  }

  std::vector<int64_t> shape_of(const std::string& name) const {
    const ModelConfig& c = config_;
    const int64_t hidden = c.hidden_size, inner = c.intermediate_size, experts = c.num_experts;
    const bool bias = ends_with(name, "bias");
    const auto linear = [&](int64_t rows, int64_t cols) {
      return bias ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, cols};
    };
    const auto expert = [&](int64_t rows, int64_t cols) -> std::vector<int64_t> {
      if (bias) {
        return {experts, rows};
      }
      if (ends_with(name, "scales")) {
        return {experts, rows, cols / mx_block};
      }
      return {experts, rows, cols / mx_block, mx_block_bytes};
    };
    if (ends_with(name, "embedding.weight")) {  // and the unembedding's
      return {c.vocab_size, hidden};
    }
    if (ends_with(name, "norm.scale")) {
      return {hidden};
    }
    if (ends_with(name, "sinks")) {
      return {c.num_attention_heads};
    }
    if (name.find(".q.") != std::string::npos) {
      return linear(c.query_size(), hidden);
    }
    if (name.find(".k.") != std::string::npos || name.find(".v.") != std::string::npos) {
      return linear(c.kv_size(), hidden);
    }
    if (name.find(".out.") != std::string::npos) {
      return linear(hidden, c.query_size());
    }
    if (name.find(".gate.") != std::string::npos) {
      return linear(experts, hidden);
    }
    return name.find("mlp1") != std::string::npos ? expert(2 * inner, hidden)
                                                  : expert(hidden, inner);
  }

  void fill(const std::string& name, Stored& stored) {
    std::mt19937 random(static_cast<unsigned>(std::hash<std::string>{}(name)));
    stored.shape = shape_of(name);
    int64_t count = 1;
    for (const int64_t extent : stored.shape) {
      count *= extent;
    }
    if (ends_with(name, "blocks") || ends_with(name, "scales")) {
      stored.dtype = DType::u8;
      const bool scales = ends_with(name, "scales");
      for (int64_t i = 0; i < count; ++i) {
        stored.bytes.push_back(static_cast<uint8_t>(scales ? 122 + random() % 3 : random() & 255));
      }
      return;
    }
    const float spread =
        ends_with(name, ".weight") && !ends_with(name, "embedding.weight") ? 0.15f : 0.5f;
    const float middle = ends_with(name, "norm.scale") ? 1.0f : 0.0f;
    std::normal_distribution<float> normal(middle, spread);
    stored.bytes.resize(static_cast<size_t>(count) * sizeof(bf16));
    auto* values = reinterpret_cast<bf16*>(stored.bytes.data());
    for (int64_t i = 0; i < count; ++i) {
      values[i] = to_bf16(normal(random));
    }
  }

  ModelConfig config_;
  std::map<std::string, Stored> tensors_;
};

}  // namespace gptoss::test
