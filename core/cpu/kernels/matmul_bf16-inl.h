// matmul_bf16 with AVX-512 BF16.
//
// A task decodes a stretch of columns of three panels into its scratch, in the second-level cache,
// and multiplies them with all operand rows, eight at a time: 24 sums in registers, and for each
// pair of columns three loads of weights and eight broadcasts of the operand feed 24 vdpbf16ps. The
// instruction rounds its two products' sum once and takes subnormal numbers for zero.
#pragma once

#include <immintrin.h>
#include <string.h>
#include <x86intrin.h>  // __rdtsc; GCC 10 declares it here alone

#include "core/cpu/kernels/decode_bf16-inl.h"
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {
namespace {

constexpr int dot_rows = 8;         // operand rows at a time
constexpr int dot_panels = 3;       // panels at a time
constexpr int64_t dot_blocks = 48;  // blocks of columns at a time
static_assert(dot_panels * dot_blocks * bf16_block_bytes <= matmul_scratch);
static_assert(operand_tile_rows % dot_rows == 0, "operand tiles are whole");

// Where P panels' decoded blocks lie.
struct DotWeights {
  const uint8_t* bytes;
  int64_t panel_stride;
  int64_t blocks;
};

// y[r, n] of at most 8 operand rows and P panels over some blocks of columns; adds to y unless
// `first`, which begins with the bias.
template <int P>
GPTOSS_NOINLINE void dot_tile(const MatmulArgs& a, const DotWeights& w, const bf16* x, int64_t rows,
                              int64_t panel, float* y, bool first) {
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
    x += operand_tile_rows * panel_block;
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
void dot_panels_at(const MatmulArgs& a, int64_t panel) {
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
      const int64_t row = a.first_row + r;
      const bf16* x = a.x.tiles +
                      row / operand_tile_rows * operand_tile_rows * blocks * panel_block +
                      b * operand_tile_rows * panel_block + row % operand_tile_rows * panel_block;
      dot_tile<P>(a, w, x, rows, panel, a.y + r * a.y_stride, b == 0);
    }
  }
}

void matmul_bf16(const MatmulArgs& a) {
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

}  // namespace
}  // namespace gptoss::cpu
