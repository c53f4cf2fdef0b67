// Elementary functions without branches or calls, so that loops over them become vector code on
// every instruction set.
#pragma once

#include "core/dtype.h"

namespace gptoss::cpu {
namespace {

// To the nearest integer, ties to even, for |x| < 2^22: adding 1.5 · 2^23 leaves no fraction bits.
GPTOSS_INLINE float round_to_integer(float x) {
  constexpr float no_fraction = 12582912.0f;
  return (x + no_fraction) - no_fraction;
}

// e^x to about one unit in the last place; 0 below -87.3, infinity above 88, NaN for NaN.
// x = n ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two parts so that r is exact (Cody and Waite 1980);
// e^r by the minimax polynomial of the Cephes library's expf (Moshier 1989).
GPTOSS_INLINE float exp_f32(float x) {
  const bool underflows = x < -87.3f;
  float bounded = underflows ? -87.3f : x;
  bounded = bounded > 88.0f ? 88.0f : bounded;
  const float n = round_to_integer(bounded * 1.44269504f);
  const float r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = p * r * r + r + 1.0f;
  const auto exponent = static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23;
  const float result = e * bits_to_float(exponent);
  const float above = x > 88.0f ? bits_to_float(0x7f800000u) : result;
  return underflows ? 0.0f : above;
}

}  // namespace
}  // namespace gptoss::cpu
