// Kernels that process a row element by element, or block by block.
#pragma once

#include <math.h>
#include <string.h>

#include "core/cpu/kernels/table.h"
#include "core/cpu/kernels/vector_math-inl.h"
#include "core/cpu/kernels/vectors-inl.h"

namespace gptoss::cpu {
namespace {

void rms_norm(const RmsNormArgs& a) {
  const float mean_square = sum_of_squares(a.x, a.n) / static_cast<float>(a.n);
  const float factor = 1.0f / sqrtf(mean_square + a.eps);
  for (int64_t i = 0; i < a.n; ++i) {
    a.y[i] = a.x[i] * factor * to_float(a.scale[i]);
  }
}

void rope(const RopeArgs& a) {
  for (int64_t head = 0; head < a.heads; ++head) {
    float* first = a.x + head * 2 * a.half;
    float* second = first + a.half;
    for (int64_t i = 0; i < a.half; ++i) {
      const float x1 = first[i];
      const float x2 = second[i];
      first[i] = x1 * a.cos[i] - x2 * a.sin[i];
      second[i] = x2 * a.cos[i] + x1 * a.sin[i];
    }
  }
}

// One block: magnitudes of floats are ordered as their bits are, and the exponent field of the
// largest gives the scale.
GPTOSS_INLINE float quantize_block(const float* x, int16_t* q) {
  uint32_t largest = 0;
  for (int i = 0; i < panel_block; ++i) {
    const uint32_t magnitude = float_to_bits(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= 0x7f800000u) {
    memset(q, 0, panel_block * sizeof(int16_t));
    return bits_to_float(0x7fc00000u);
  }
  // 2^14 ≤ largest / scale < 2^15, except that a quotient which would round to 2^15 takes the next
  // scale, and that scales stay normal numbers.
  constexpr uint32_t fraction_bits = 23;
  uint32_t exponent = largest >> fraction_bits;
  exponent = exponent > 15 ? exponent - 14 : 1;
  if (bits_to_float(largest) > 32767.0f * bits_to_float(exponent << fraction_bits)) {
    ++exponent;
  }
  const float inverse = bits_to_float((254 - exponent) << fraction_bits);
  for (int i = 0; i < panel_block; ++i) {
    q[i] = static_cast<int16_t>(static_cast<int32_t>(round_to_integer(x[i] * inverse)));
  }
  return bits_to_float(exponent << fraction_bits);
}

void quantize(const QuantizeArgs& a) {
  int64_t k = 0;
  for (; k + panel_block <= a.n; k += panel_block) {
    a.scale[k / panel_block] = quantize_block(a.x + k, a.q + k);
  }
  if (k < a.n) {
    float rest[panel_block] = {};
    memcpy(rest, a.x + k, static_cast<size_t>(a.n - k) * sizeof(float));
    a.scale[k / panel_block] = quantize_block(rest, a.q + k);
  }
}

void to_tile_row(const TileRowArgs& a) {
  for (int64_t k = 0; k < a.n; k += panel_block) {
    bf16* to = a.tile_row + k * panel_rows;
    const int64_t count = a.n - k < panel_block ? a.n - k : panel_block;
    for (int64_t i = 0; i < count; ++i) {
      to[i] = to_bf16(a.x[k + i]);
    }
    for (int64_t i = count; i < panel_block; ++i) {
      to[i] = bf16{0};
    }
  }
}

void swiglu(const SwigluArgs& a) {
  for (int64_t i = a.begin; i < a.end; ++i) {
    float glu = a.u[2 * i];
    float linear = a.u[2 * i + 1];
    // Comparisons written so that a NaN passes through and is seen.
    glu = glu > a.limit ? a.limit : glu;
    linear = linear > a.limit ? a.limit : linear < -a.limit ? -a.limit : linear;
    const float h = glu / (1.0f + exp_f32(-1.702f * glu)) * (linear + 1.0f);
    a.h[i] = a.round ? round_to_bf16(h) : h;
  }
}

void convert_to_bf16(const float* from, bf16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    to[i] = to_bf16(from[i]);
  }
}

void round_rows(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = round_to_bf16(x[i]);
  }
}

void add_scaled(float* y, const float* x, float a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] += a * x[i];
  }
}

}  // namespace
}  // namespace gptoss::cpu
