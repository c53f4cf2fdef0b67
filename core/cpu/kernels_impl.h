// The kernels in portable C++ over vectors of GPTOSS_VECTOR_BYTES. Included once by each
// kernels_<isa>.cpp, which is compiled for its instruction set; everything here has internal
// linkage, and nothing inline of the standard library is called, so that no code compiled for one
// instruction set can be linked into another.
#pragma once

#include <math.h>
#include <string.h>

#include "batch.h"
#include "cpu/kernels.h"
#include "cpu/vector_math.h"

namespace gptoss::cpu {
namespace {

// ---- Sixteen floats, whatever the machine's vectors are ----

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

// ---- Elementwise ----

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

#include "cpu/panel_f32.h"

#include "cpu/attention_impl.h"
#if GPTOSS_VECTOR_BYTES >= 32
#include "cpu/panel_i16.h"
#endif
#ifdef GPTOSS_BF16
#include "cpu/panel_bf16.h"
#endif
#if defined(GPTOSS_AMX) || defined(GPTOSS_AMX_EMULATED)
#include "cpu/panel_amx.h"
#endif

namespace gptoss::cpu {
namespace {

// Float32 multiply-add on independent sums.
double peak_f32(int64_t rounds) {
  constexpr int sums = 10;
  Floats sum[sums];
  for (int s = 0; s < sums; ++s) {
    sum[s] = splat(0.0f);
  }
  const Floats factor = splat(0.5f);
  for (int64_t i = 0; i < rounds; ++i) {
#if defined(__GNUC__)
#pragma GCC unroll 10
#endif
    for (int s = 0; s < sums; ++s) {
      sum[s] = sum[s] * factor + factor;
    }
  }
  Floats all = splat(0.0f);
  for (int s = 0; s < sums; ++s) {
    all += sum[s];
  }
  float first;
  memcpy(&first, &all, sizeof first);
  // The sums converge to 1 each: using them keeps the compiler from leaving the work out.
  return static_cast<double>(rounds) * sums * lanes * 2 + (first < 0.0f ? 1.0 : 0.0);
}

constexpr Kernels make_kernels(Isa isa) {
  Kernels kernels{};
  kernels.peak = peak_f32;
  kernels.isa = isa;
  kernels.matmul_f32 = matmul_f32;
  kernels.quantize = quantize;
  kernels.to_tile_row = to_tile_row;
#if GPTOSS_VECTOR_BYTES >= 32
  kernels.matmul_i16 = matmul_i16;
#endif
#ifdef GPTOSS_BF16
  kernels.matmul_bf16 = matmul_bf16;
  // bf16, mxfp4, q8: what decoding costs is shared by the rows (measured on a Zen 4).
  kernels.min_rows_bf16[0] = 2;
  kernels.min_rows_bf16[1] = 24;
  kernels.min_rows_bf16[2] = 48;
  kernels.bf16_is_fast = bf16_is_fast;
  kernels.peak = peak_bf16;
#endif
#if defined(GPTOSS_AMX)
  kernels.matmul_bf16 = matmul_amx<HardwareTiles>;
  kernels.peak = peak_amx;
  kernels.min_rows_bf16[1] = kernels.min_rows_bf16[2] =
      8;  // a tile costs the same for 1 to 16 rows
#elif defined(GPTOSS_AMX_EMULATED)
  kernels.matmul_bf16 = matmul_amx<EmulatedTiles>;
  kernels.min_rows_bf16[1] = kernels.min_rows_bf16[2] = 8;
#endif
  kernels.rms_norm = rms_norm;
  kernels.rope = rope;
  kernels.attention = attention;
  kernels.swiglu = swiglu;
  kernels.to_bf16 = convert_to_bf16;
  kernels.round_bf16 = round_rows;
  kernels.add_scaled = add_scaled;
  return kernels;
}

}  // namespace
}  // namespace gptoss::cpu
