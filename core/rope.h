// Rotary positions with YaRN's frequencies.
#pragma once

#include <cstdint>
#include <vector>

#include "core/config.h"

namespace gptoss {

// cos and sin of every token's rotation, (T, head_dim / 2) each, YaRN's concentration included.
struct RopeTable {
  std::vector<float> cos, sin;
};

// YaRN's inverse frequencies (Peng et al. 2023, "NTK-by-parts"; docs/spec.md, "Rotary embedding"),
// (head_dim / 2).
std::vector<double> yarn_inverse_frequencies(const ModelConfig& config);
// 0.1 · ln(factor) + 1, or 1 where factor ≤ 1.
double yarn_concentration(const ModelConfig& config);

RopeTable make_rope_table(const ModelConfig& config, const std::vector<double>& inverse_frequencies,
                          const std::vector<int32_t>& positions);

}  // namespace gptoss
