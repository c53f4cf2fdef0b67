#include "core/rope.h"

#include <algorithm>
#include <cmath>

namespace gptoss {

std::vector<double> yarn_inverse_frequencies(const ModelConfig& c) {
  const int half = c.head_dim / 2;
  std::vector<double> result(static_cast<size_t>(half));
  const double two_pi = 2.0 * std::acos(-1.0);
  // The pair index at which a wave turns `beta` times within the initial context. Not rounded.
  const auto boundary = [&](double beta) {
    return half * std::log(c.initial_context_length / (beta * two_pi)) / std::log(c.rope_theta);
  };
  const double low = boundary(c.rope_ntk_beta);
  const double high = boundary(c.rope_ntk_alpha);
  for (int i = 0; i < half; ++i) {
    const double base = std::pow(c.rope_theta, -static_cast<double>(i) / half);
    double& out = result[static_cast<size_t>(i)];
    if (c.rope_scaling_factor <= 1.0) {
      out = base;
      continue;
    }
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    out = ramp * base / c.rope_scaling_factor + (1.0 - ramp) * base;
  }
  return result;
}

double yarn_concentration(const ModelConfig& c) {
  return c.rope_scaling_factor > 1.0 ? 0.1 * std::log(c.rope_scaling_factor) + 1.0 : 1.0;
}

RopeTable make_rope_table(const ModelConfig& config, const std::vector<double>& inverse_frequencies,
                          const std::vector<int32_t>& positions) {
  const size_t half = inverse_frequencies.size();
  const double concentration = yarn_concentration(config);
  RopeTable table;
  table.cos.resize(positions.size() * half);
  table.sin.resize(positions.size() * half);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < half; ++i) {
      const double angle = positions[t] * inverse_frequencies[i];
      table.cos[t * half + i] = static_cast<float>(std::cos(angle) * concentration);
      table.sin[t * half + i] = static_cast<float>(std::sin(angle) * concentration);
    }
  }
  return table;
}

}  // namespace gptoss
