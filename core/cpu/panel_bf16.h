// matmul_bf16 with AVX-512 BF16, and weights decoded to bf16, which AMX shares (included by
// kernels_<isa>.cpp).
//
// A task decodes a stretch of columns of three panels into its scratch, in the second-level cache,
// and multiplies them with all operand rows, eight at a time: 24 sums in registers, and for each
// pair of columns three loads of weights and eight broadcasts of the operand feed 24 vdpbf16ps. The
// instruction rounds its two products' sum once and takes subnormal numbers for zero.
#pragma once

#include <immintrin.h>

#include "cpu/kernels.h"

namespace gptoss::cpu {
namespace {

// ---- Weights of one block as bf16 pairs: (16 pairs, panel_rows, 2), 1 KiB ----

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
GPTOSS_INLINE void decode_q8(const uint8_t* block, const uint8_t* scales, uint8_t* out) {
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales))), 16));
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
    } else {
      decode_q8(panel + b * bytes, scales + b * scale_bytes, out);
    }
  }
}

// ---- The product ----

constexpr int dot_rows = 8;         // operand rows at a time
constexpr int dot_panels = 3;       // panels at a time
constexpr int64_t dot_blocks = 48;  // blocks of columns at a time
static_assert(dot_panels * dot_blocks * bf16_block_bytes <= matmul_scratch);
static_assert(panel_rows % dot_rows == 0, "operand tiles are whole");

// Where P panels' decoded blocks lie.
struct DotWeights {
  const uint8_t* bytes;
  int64_t panel_stride;
  int64_t blocks;
};

// y[r, n] of at most 8 operand rows and P panels over some blocks of columns; adds to y unless
// `first`, which begins with the bias.
template <int P>
GPTOSS_NOINLINE void dot_tile(const MatmulBf16Args& a, const DotWeights& w, const bf16* x,
                              int64_t rows, int64_t panel, float* y, bool first) {
  __m512 sum[P][dot_rows];
  for (int p = 0; p < P; ++p) {
    for (int r = 0; r < dot_rows; ++r) {
      sum[p][r] = _mm512_setzero_ps();
    }
  }
  const uint8_t* weights = w.bytes;
  for (int64_t b = 0; b < w.blocks; ++b) {
    for (int k = 0; k < block_pairs; ++k, weights += 64) {
      __m512bh pair[P];
      for (int p = 0; p < P; ++p) {
        pair[p] = reinterpret_cast<__m512bh>(_mm512_load_si512(weights + p * w.panel_stride));
      }
      for (int r = 0; r < dot_rows; ++r) {
        int32_t two;
        memcpy(&two, x + r * panel_block + 2 * k, sizeof two);
        const auto operand = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
        for (int p = 0; p < P; ++p) {
          sum[p][r] = _mm512_dpbf16_ps(sum[p][r], pair[p], operand);
        }
      }
    }
    x += panel_rows * panel_block;
  }
  for (int p = 0; p < P; ++p) {
    const int64_t n = (panel + p) * panel_rows;
    const int64_t left = a.w.rows - n;
    const auto mask = static_cast<__mmask16>(left >= panel_rows ? 0xffff : (1u << left) - 1);
    __m512 bias = _mm512_setzero_ps();
    if (a.w.bias != nullptr) {
      const __m256i bits = _mm256_maskz_loadu_epi16(mask, a.w.bias + n);
      bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    for (int r = 0; r < rows; ++r) {
      float* to = y + r * a.y_stride + n;
      const __m512 before = first ? bias : _mm512_maskz_loadu_ps(mask, to);
      _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(before, sum[p][r]));
    }
  }
}

template <int P>
void dot_panels_at(const MatmulBf16Args& a, int64_t panel) {
  const int64_t bytes = panel_bytes(a.w.format, a.w.cols);
  const int64_t blocks = panel_blocks(a.w.cols);
  const uint8_t* panels = a.w.data + panel * bytes;
  for (int64_t b = 0; b < blocks; b += dot_blocks) {
    const int64_t count = blocks - b < dot_blocks ? blocks - b : dot_blocks;
    DotWeights w{panels + b * bf16_block_bytes, bytes, count};
    if (a.w.format != WeightFormat::bf16) {
      w = {a.scratch, count * bf16_block_bytes, count};
      for (int p = 0; p < P; ++p) {
        decode_blocks(a.w, panels + p * bytes, b, count, a.scratch + p * w.panel_stride);
      }
    }
    for (int64_t r = 0; r < a.rows; r += dot_rows) {
      const int64_t rows = a.rows - r < dot_rows ? a.rows - r : dot_rows;
      const bf16* x = a.x + r / panel_rows * panel_rows * blocks * panel_block +
                      b * panel_rows * panel_block + r % panel_rows * panel_block;
      dot_tile<P>(a, w, x, rows, panel, a.y + r * a.y_stride, b == 0);
    }
  }
}

void matmul_bf16(const MatmulBf16Args& a) {
  static_assert(dot_panels == 3);
  for (int64_t p = a.begin; p < a.end;) {
    const int64_t left = a.end - p;
    if (left == 1) {
      dot_panels_at<1>(a, p);
      p += 1;
    } else if (left == 2 || left == 4) {  // two and two are faster than three and one
      dot_panels_at<2>(a, p);
      p += 2;
    } else {
      dot_panels_at<3>(a, p);
      p += 3;
    }
  }
}

// ---- Is it worth it? ----

// Clock ticks of some thousand independent instructions, the shortest of some tries: the system may
// take the core away in between. Written in assembly because the compiler must neither leave them
// out nor keep their sums in memory.
#define GPTOSS_TIME(instruction, ticks)                                                       \
  for (int attempt = 0; attempt < 8; ++attempt) {                                             \
    const uint64_t begin = __rdtsc();                                                         \
    for (int i = 0; i < 500; ++i) {                                                           \
      asm volatile(                                                                           \
          instruction                                                                         \
          " %%zmm31, %%zmm31, %%zmm0\n" instruction " %%zmm31, %%zmm31, %%zmm1\n" instruction \
          " %%zmm31, %%zmm31, %%zmm2\n" instruction " %%zmm31, %%zmm31, %%zmm3\n" instruction \
          " %%zmm31, %%zmm31, %%zmm4\n" instruction " %%zmm31, %%zmm31, %%zmm5\n" instruction \
          " %%zmm31, %%zmm31, %%zmm6\n" instruction " %%zmm31, %%zmm31, %%zmm7\n"             \
          :                                                                                   \
          :                                                                                   \
          : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm31");         \
    }                                                                                         \
    const uint64_t taken = __rdtsc() - begin;                                                 \
    (ticks) = taken < (ticks) ? taken : (ticks);                                              \
  }

// Does vdpbf16ps, two products a lane, take less than 1.5 times as long as vfmadd with one?
bool bf16_is_fast() {
  uint64_t fma = ~uint64_t{0}, dot = ~uint64_t{0};
  asm volatile("vpxorq %%zmm31, %%zmm31, %%zmm31" : : : "xmm31");
  GPTOSS_TIME("vfmadd231ps", fma)
  GPTOSS_TIME("vdpbf16ps", dot)
  return 2 * dot < 3 * fma;
}
#undef GPTOSS_TIME

double peak_bf16(int64_t rounds) {
  asm volatile("vpxorq %%zmm31, %%zmm31, %%zmm31" : : : "xmm31");
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm0\n vdpbf16ps %%zmm31, %%zmm31, %%zmm1\n"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm2\n vdpbf16ps %%zmm31, %%zmm31, %%zmm3\n"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm4\n vdpbf16ps %%zmm31, %%zmm31, %%zmm5\n"
        "vdpbf16ps %%zmm31, %%zmm31, %%zmm6\n vdpbf16ps %%zmm31, %%zmm31, %%zmm7\n"
        :
        :
        : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7");
  }
  return static_cast<double>(rounds) * 8 * 64;
}

}  // namespace
}  // namespace gptoss::cpu
