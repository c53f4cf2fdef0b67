// All kernels of one instruction set as a table. Included once by each instruction set's own .cpp,
// which defines the macros below and is compiled for it; everything in the *-inl.h files has
// internal linkage, and nothing inline of the standard library is called, so that no code compiled
// for one instruction set can be linked into another.
#pragma once

#include "core/cpu/kernels/attention-inl.h"
#include "core/cpu/kernels/elementwise-inl.h"
#include "core/cpu/kernels/matmul_f32-inl.h"
#include "core/cpu/kernels/table.h"
#if GPTOSS_VECTOR_BYTES >= 32
#include "core/cpu/kernels/matmul_i16-inl.h"
#endif
#ifdef GPTOSS_BF16
#include "core/cpu/kernels/matmul_bf16-inl.h"
#endif
#if defined(GPTOSS_AMX) || defined(GPTOSS_AMX_EMULATED)
#include "core/cpu/kernels/matmul_amx-inl.h"
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
