// Weights of one block of a panel as bf16 pairs, (16 pairs, panel_rows, 2), 1 KiB: for the products
// with AVX-512 BF16 and with AMX.
#pragma once

#include <immintrin.h>

#include "core/cpu/panels.h"
#include "core/dtype.h"

namespace gptoss::cpu {
namespace {

constexpr int block_pairs = panel_block / 2;
constexpr int64_t bf16_block_bytes = panel_rows * panel_block * 2;

// To bf16, round to nearest even, in the upper half of each lane. No NaN among them.
GPTOSS_INLINE __m512i rounded_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}
// Two such → a pair in each lane.
GPTOSS_INLINE __m512i bf16_pair(__m512 even, __m512 odd) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(rounded_bf16(even), 16),
                                 rounded_bf16(odd));
}

GPTOSS_INLINE __m512i e2m1_bf16_table() {
  const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(e2m1_as_bf16));
  return _mm512_broadcast_i64x4(sixteen);  // twice, so that bit 4 of an index does not matter
}

// 16 pairs of columns, of which bits 4p … 4p + 3 of each 16-bit lane of a group are the codes.
GPTOSS_INLINE __m512i e2m1_pairs(__m512i table, __m512i group, int p) {
  return _mm512_permutexvar_epi16(_mm512_srl_epi16(group, _mm_cvtsi32_si128(4 * p)), table);
}

// A block where some scale leaves the range of normal bf16 numbers: multiplied, then rounded.
GPTOSS_NOINLINE void decode_mxfp4_rare(const uint8_t* block, const uint8_t* scales, uint8_t* out) {
  const __m512i table = e2m1_bf16_table();
  const __m512i biased =
      _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
  const __m512 factor = _mm512_castsi512_ps(
      _mm512_max_epi32(_mm512_slli_epi32(biased, 23), _mm512_set1_epi32(0x00400000)));
  for (int group = 0; group < 4; ++group) {
    const __m512i codes = _mm512_load_si512(block + group * 64);
    for (int p = 0; p < 4; ++p) {
      const __m512i value = e2m1_pairs(table, codes, p);
      const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(value, 16));
      const __m512 odd = _mm512_castsi512_ps(
          _mm512_and_si512(value, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
      _mm512_store_si512(out + (group * 4 + p) * 64,
                         bf16_pair(_mm512_mul_ps(even, factor), _mm512_mul_ps(odd, factor)));
    }
  }
}

// The scale goes into the exponent field of all but zeros, which is exact while the value stays a
// normal number: 3 ≤ scale ≤ 250. Zeros lose their sign, which no sum shows.
GPTOSS_INLINE void decode_mxfp4(__m512i table, const uint8_t* block, const uint8_t* scales,
                                uint8_t* out) {
  const __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i*>(scales));
  const __m128i from_three = _mm_sub_epi8(bytes, _mm_set1_epi8(3));
  if (_mm_cmpgt_epu8_mask(from_three, _mm_set1_epi8(static_cast<char>(247))) != 0) {
    decode_mxfp4_rare(block, scales, out);
    return;
  }
  const __m512i exponent = _mm512_sub_epi32(_mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 7),
                                            _mm512_set1_epi32(127 << 7));
  const __m512i shift =
      _mm512_mask_blend_epi16(0xaaaaaaaau, exponent, _mm512_slli_epi32(exponent, 16));
  for (int group = 0; group < 4; ++group) {
    const __m512i codes = _mm512_load_si512(block + group * 64);
    for (int p = 0; p < 4; ++p) {
      const __m512i value = e2m1_pairs(table, codes, p);
      const __mmask32 nonzero = _mm512_test_epi16_mask(value, _mm512_set1_epi16(0x7fff));
      _mm512_store_si512(out + (group * 4 + p) * 64, _mm512_maskz_add_epi16(nonzero, value, shift));
    }
  }
}

// int8 times the row's scale, rounded to bf16 once: an error of at most 2^-8 of the weight, where
// quantisation itself has cost up to 2^-8 of the block's largest. The conversion takes subnormal
// numbers for zero, as the products do.
template <WeightFormat format>
GPTOSS_INLINE void decode_q8(const uint8_t* block, const uint8_t* scales, uint8_t* out) {
  const __m256i halves = _mm256_load_si256(reinterpret_cast<const __m256i*>(scales));
  const __m512 scale =
      format == WeightFormat::q8_0
          ? _mm512_cvtph_ps(halves)
          : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // Sixteen even columns, then sixteen odd ones → pairs.
  const __m512i pairs =
      _mm512_or_si512(lane, _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 16));
  for (int group = 0; group < 8; ++group) {
    const __m512i bytes = _mm512_load_si512(block + group * 64);
    // Columns k0, k2, k1, k3 lie in bytes 0 … 3.
    const auto column = [&](int shift) {
      const __m512i top = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(shift));
      return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(top, 24)), scale);
    };
    const auto store = [&](int64_t at, __m512 even, __m512 odd) {
      const auto apart = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
      _mm512_store_si512(out + group * 128 + at, _mm512_permutexvar_epi16(pairs, apart));
    };
    store(0, column(24), column(8));
    store(64, column(16), column(0));
  }
}

// Blocks [first, first + count) of a panel, one after another.
GPTOSS_INLINE void decode_blocks(const Panels& w, const uint8_t* panel, int64_t first,
                                 int64_t count, uint8_t* out) {
  const int64_t bytes = panel_block_bytes(w.format);
  const int64_t scale_bytes = panel_scale_bytes(w.format);
  const uint8_t* scales = panel + panel_blocks(w.cols) * bytes;
  const __m512i table = e2m1_bf16_table();
  for (int64_t b = first; b < first + count; ++b, out += bf16_block_bytes) {
    if (w.format == WeightFormat::mxfp4) {
      decode_mxfp4(table, panel + b * bytes, scales + b * scale_bytes, out);
    } else if (w.format == WeightFormat::q8_0) {
      decode_q8<WeightFormat::q8_0>(panel + b * bytes, scales + b * scale_bytes, out);
    } else {
      decode_q8<WeightFormat::q8>(panel + b * bytes, scales + b * scale_bytes, out);
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu
