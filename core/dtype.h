// Number formats of the published weights: bf16, e2m1 (fp4), e8m0. Conversions and nothing else.
#pragma once

#include <cstdint>
#include <cstring>

// Forced inlining keeps one translation unit's instruction set out of another: an out-of-line copy
// compiled with AVX-512 could otherwise be the one that the linker keeps for all.
#if defined(__CUDACC__)
#define GPTOSS_INLINE __host__ __device__ __forceinline__
#define GPTOSS_NOINLINE __noinline__
#elif defined(__GNUC__)
#define GPTOSS_INLINE inline __attribute__((always_inline))
// For the inner loops of kernels: a function of its own has all registers to itself.
#define GPTOSS_NOINLINE __attribute__((noinline))
#else
#define GPTOSS_INLINE inline
#define GPTOSS_NOINLINE
#endif
// Before a loop of few and constant turns: addresses become constants.
#if defined(__CUDACC__)
#define GPTOSS_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define GPTOSS_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define GPTOSS_UNROLL _Pragma("GCC unroll 16")
#else
#define GPTOSS_UNROLL
#endif

namespace gptoss {

struct bf16 {
  uint16_t bits;
};
static_assert(sizeof(bf16) == 2);

GPTOSS_INLINE float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

GPTOSS_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Exact.
GPTOSS_INLINE float to_float(bf16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even; NaN stays a (quiet) NaN.
GPTOSS_INLINE bf16 to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return bf16{static_cast<uint16_t>((bits >> 16) | 0x0040u)};
  }
  return bf16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

GPTOSS_INLINE float round_to_bf16(float value) { return to_float(to_bf16(value)); }

// A finite float16, exactly: the bits of a float32 whose exponent is 112 too small.
GPTOSS_INLINE float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  return bits_to_float(magnitude | sign) * bits_to_float((127u + 112u) << 23);
}

// e8m0: a power of two, 2^(byte - 127); byte 0 is 2^-127, a float32 subnormal. 0xFF means NaN by
// the OCP Microscaling specification and is refused when a checkpoint is opened.
GPTOSS_INLINE float e8m0_to_float(uint8_t byte) {
  return byte == 0 ? bits_to_float(0x00400000u) : bits_to_float(static_cast<uint32_t>(byte) << 23);
}

// e2m1: sign, two exponent bits (bias 1), one mantissa bit.
constexpr float e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                   -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// The same without a table, for loops that the compiler vectorises: code 0 … 15.
GPTOSS_INLINE float e2m1_to_float(uint32_t code) {
  const uint32_t magnitude = code & 7u;
  // 0 and 0.5 have no hidden bit: take 1 and 1.5, then 1 away. (A float32 subnormal times a power
  // of two would do it too, but costs some chips a hundred cycles.)
  const bool hidden = magnitude >= 2u;
  const uint32_t normal = hidden ? magnitude : magnitude | 2u;
  const float value = bits_to_float((normal << 22) + (126u << 23)) - (hidden ? 0.0f : 1.0f);
  return bits_to_float(float_to_bits(value) | (code & 8u) << 28);
}

// The same values as bf16 bit patterns: sign bit, and the upper half of the float32 pattern.
constexpr uint16_t e2m1_as_bf16[16] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040,
                                       0x4080, 0x40c0, 0x8000, 0xbf00, 0xbf80, 0xbfc0,
                                       0xc000, 0xc040, 0xc080, 0xc0c0};

// An MXFP4 block: 32 values along the input dimension share one scale; 16 bytes hold them, the low
// nibble of byte i is value 2i, the high nibble value 2i + 1.
constexpr int mx_block = 32;
constexpr int mx_block_bytes = 16;

}  // namespace gptoss
