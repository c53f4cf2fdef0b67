// A register of int32 lanes, one for each row of a panel: a panel is one (AVX-512) or two (AVX2) of
// them. The same operations for either, so that matmul_i16 is written once.
#pragma once

#include <immintrin.h>

#include "core/dtype.h"

namespace gptoss::cpu {
namespace {

// A sum that must be formed here, in this order: integer sums may be regrouped, and GCC makes trees
// of them, all leaves of which it then keeps on the stack.
template <class Register>
GPTOSS_INLINE Register in_order(Register sum) {
#if defined(__GNUC__)
  asm("" : "+v"(sum));
#endif
  return sum;
}

#if GPTOSS_VECTOR_BYTES == 64
using Lanes = __m512i;
using LaneFloats = __m512;
constexpr int registers = 1;

GPTOSS_INLINE Lanes lanes_zero() { return _mm512_setzero_si512(); }
GPTOSS_INLINE Lanes lanes_load(const uint8_t* from) { return _mm512_load_si512(from); }
GPTOSS_INLINE Lanes lanes_splat(int32_t value) { return _mm512_set1_epi32(value); }
GPTOSS_INLINE Lanes lanes_add(Lanes a, Lanes b) { return _mm512_add_epi32(a, b); }
GPTOSS_INLINE Lanes add_pairs(Lanes sum, Lanes a, Lanes b) {
#ifdef GPTOSS_VNNI
  return _mm512_dpwssd_epi32(sum, a, b);
#else
  return in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(a, b)));
#endif
}
GPTOSS_INLINE LaneFloats floats_zero() { return _mm512_setzero_ps(); }
GPTOSS_INLINE LaneFloats floats_of(Lanes sum) { return _mm512_cvtepi32_ps(sum); }
GPTOSS_INLINE LaneFloats floats_splat(float value) { return _mm512_set1_ps(value); }
GPTOSS_INLINE LaneFloats floats_product(LaneFloats a, LaneFloats b) { return _mm512_mul_ps(a, b); }
GPTOSS_INLINE LaneFloats floats_add_product(LaneFloats sum, LaneFloats a, LaneFloats b) {
  return _mm512_fmadd_ps(a, b, sum);
}
GPTOSS_INLINE void floats_store(float* to, LaneFloats value) { _mm512_storeu_ps(to, value); }
// 2^(byte − 127) of each row; byte 0 is the subnormal 2^-127.
GPTOSS_INLINE LaneFloats scales_e8m0(const uint8_t* from) {
  const Lanes bytes = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm512_castsi512_ps(
      _mm512_max_epi32(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(0x00400000)));
}
GPTOSS_INLINE LaneFloats scales_bf16(const uint8_t* from) {
  const Lanes halves =
      _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}
GPTOSS_INLINE LaneFloats scales_f16(const uint8_t* from) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
}

// Twice the e2m1 values of the codes in the lowest four bits of each int16; the next bit is ignored
// because the table of 32 holds the sixteen values twice.
struct E2m1 {
  Lanes table;
  GPTOSS_INLINE E2m1()
      : table(_mm512_broadcast_i64x4(
            _mm256_setr_epi16(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))) {}
  GPTOSS_INLINE Lanes look_up(Lanes codes) const { return _mm512_permutexvar_epi16(codes, table); }
  // The four pairs of 8 columns.
  GPTOSS_INLINE void widen(Lanes bytes, Lanes pairs[4]) const {
    pairs[0] = look_up(bytes);
    pairs[1] = look_up(_mm512_srli_epi16(bytes, 4));
    pairs[2] = look_up(_mm512_srli_epi16(bytes, 8));
    pairs[3] = look_up(_mm512_srli_epi16(bytes, 12));
  }
};

// The two pairs of 4 columns of int8.
GPTOSS_INLINE void widen_i8(Lanes bytes, Lanes pairs[2]) {
  pairs[0] = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
  pairs[1] = _mm512_srai_epi16(bytes, 8);
}
#else
using Lanes = __m256i;
using LaneFloats = __m256;
constexpr int registers = 2;

GPTOSS_INLINE Lanes lanes_zero() { return _mm256_setzero_si256(); }
GPTOSS_INLINE Lanes lanes_load(const uint8_t* from) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}
GPTOSS_INLINE Lanes lanes_splat(int32_t value) { return _mm256_set1_epi32(value); }
GPTOSS_INLINE Lanes lanes_add(Lanes a, Lanes b) { return _mm256_add_epi32(a, b); }
GPTOSS_INLINE Lanes add_pairs(Lanes sum, Lanes a, Lanes b) {
  return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(a, b)));
}
GPTOSS_INLINE LaneFloats floats_zero() { return _mm256_setzero_ps(); }
GPTOSS_INLINE LaneFloats floats_of(Lanes sum) { return _mm256_cvtepi32_ps(sum); }
GPTOSS_INLINE LaneFloats floats_splat(float value) { return _mm256_set1_ps(value); }
GPTOSS_INLINE LaneFloats floats_product(LaneFloats a, LaneFloats b) { return _mm256_mul_ps(a, b); }
GPTOSS_INLINE LaneFloats floats_add_product(LaneFloats sum, LaneFloats a, LaneFloats b) {
  return _mm256_fmadd_ps(a, b, sum);
}
GPTOSS_INLINE void floats_store(float* to, LaneFloats value) { _mm256_storeu_ps(to, value); }
GPTOSS_INLINE LaneFloats scales_e8m0(const uint8_t* from) {
  const Lanes bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(
      _mm256_max_epi32(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(0x00400000)));
}
GPTOSS_INLINE LaneFloats scales_bf16(const uint8_t* from) {
  const Lanes halves =
      _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(halves, 16));
}
GPTOSS_INLINE LaneFloats scales_f16(const uint8_t* from) {
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}

GPTOSS_INLINE void widen_i8(Lanes bytes, Lanes pairs[2]) {
  // Even bytes times one plus odd bytes times zero: half of two shifts, on other ports.
  pairs[0] = _mm256_maddubs_epi16(_mm256_set1_epi16(1), bytes);
  pairs[1] = _mm256_srai_epi16(bytes, 8);
}

// As above through a table of bytes: pairs 0 and 2 from the low nibbles, 1 and 3 from the high.
struct E2m1 {
  Lanes table;
  GPTOSS_INLINE E2m1()
      : table(_mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))) {}
  GPTOSS_INLINE void widen(Lanes bytes, Lanes pairs[4]) const {
    const Lanes nibble = _mm256_set1_epi8(15);
    const Lanes low = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
    const Lanes high =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
    Lanes two[2];
    widen_i8(low, two);
    pairs[0] = two[0];
    pairs[2] = two[1];
    widen_i8(high, two);
    pairs[1] = two[0];
    pairs[3] = two[1];
  }
};
#endif

}  // namespace
}  // namespace gptoss::cpu
