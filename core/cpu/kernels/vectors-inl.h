// Sixteen floats in portable C++, over vectors of GPTOSS_VECTOR_BYTES.
#pragma once

#include <math.h>
#include <string.h>

#include "core/cpu/kernels/vector_math-inl.h"
#include "core/dtype.h"

namespace gptoss::cpu {
namespace {

#if defined(__GNUC__)
constexpr int lanes = GPTOSS_VECTOR_BYTES / 4;
typedef float Floats __attribute__((vector_size(GPTOSS_VECTOR_BYTES)));
typedef uint32_t Words __attribute__((vector_size(GPTOSS_VECTOR_BYTES)));
typedef int32_t Integers __attribute__((vector_size(GPTOSS_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(GPTOSS_VECTOR_BYTES / 2)));

// Minus zero and not plus: x - 0 is x for -0 too, so that nothing is left to compute.
GPTOSS_INLINE Floats splat(float value) { return value - Floats{}; }

GPTOSS_INLINE Floats load_part(const float* from) {
  Floats value;
  memcpy(&value, from, sizeof value);
  return value;
}

GPTOSS_INLINE Floats load_part(const bf16* from) {
  Halves halves;
  memcpy(&halves, from, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  Floats value;
  memcpy(&value, &words, sizeof value);
  return value;
}

// exp_f32 of every lane.
GPTOSS_INLINE Floats exp_lanes(Floats x) {
  const Floats least = splat(-87.3f), most = splat(88.0f);
  Floats bounded = x < least ? least : x;
  bounded = bounded > most ? most : bounded;
  const Floats n = (bounded * splat(1.44269504f) + splat(12582912.0f)) - splat(12582912.0f);
  const Floats r = (bounded - n * splat(0.693359375f)) - n * splat(-2.12194440e-4f);
  Floats p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  const Floats e = p * r * r + r + splat(1.0f);
  const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
  Floats power;
  memcpy(&power, &exponent, sizeof power);
  const Floats result = x > most ? splat(INFINITY) : e * power;
  return x < least ? splat(0.0f) : result;
}
#else
constexpr int lanes = 1;
using Floats = float;
GPTOSS_INLINE Floats splat(float value) { return value; }
GPTOSS_INLINE Floats load_part(const float* from) { return *from; }
GPTOSS_INLINE Floats load_part(const bf16* from) { return to_float(*from); }
GPTOSS_INLINE Floats exp_lanes(Floats x) { return exp_f32(x); }
#endif

constexpr int wide = 16;  // every sum has this many partial sums, on every instruction set
constexpr int parts = wide / lanes;
static_assert(parts * lanes == wide);

struct Wide {
  Floats part[parts];
};

GPTOSS_INLINE Wide wide_zero() {
  Wide w;
  for (int i = 0; i < parts; ++i) {
    w.part[i] = splat(0.0f);
  }
  return w;
}

template <class T>
GPTOSS_INLINE Wide wide_load(const T* from) {
  Wide w;
  for (int i = 0; i < parts; ++i) {
    w.part[i] = load_part(from + i * lanes);
  }
  return w;
}

GPTOSS_INLINE void wide_store(float* to, const Wide& w) { memcpy(to, &w, sizeof w); }

GPTOSS_INLINE Wide wide_splat(float value) {
  Wide w;
  for (int i = 0; i < parts; ++i) {
    w.part[i] = splat(value);
  }
  return w;
}

GPTOSS_INLINE void wide_add_product(Wide& sum, const Wide& a, const Wide& b) {
  for (int i = 0; i < parts; ++i) {
    sum.part[i] += a.part[i] * b.part[i];
  }
}

GPTOSS_INLINE void wide_scale(Wide& w, float factor) {
  for (int i = 0; i < parts; ++i) {
    w.part[i] *= splat(factor);
  }
}

GPTOSS_INLINE float wide_max(const Wide& w) {
  Floats most = w.part[0];
  for (int i = 1; i < parts; ++i) {
    most = w.part[i] > most ? w.part[i] : most;
  }
  float s[lanes];
  memcpy(s, &most, sizeof s);
  for (int width = lanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      s[i] = s[i] > s[i + width] ? s[i] : s[i + width];
    }
  }
  return s[0];
}

// The sixteen partial sums, added in a fixed tree.
GPTOSS_INLINE float wide_sum(const Wide& w) {
  float s[wide];
  wide_store(s, w);
  for (int width = wide / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      s[i] += s[i + width];
    }
  }
  return s[0];
}

GPTOSS_INLINE float sum_of_squares(const float* x, int64_t n) {
  Wide sum = wide_zero();
  int64_t k = 0;
  for (; k + wide <= n; k += wide) {
    const Wide part = wide_load(x + k);
    wide_add_product(sum, part, part);
  }
  float rest = 0.0f;
  for (; k < n; ++k) {
    rest += x[k] * x[k];
  }
  return wide_sum(sum) + rest;
}

}  // namespace
}  // namespace gptoss::cpu
