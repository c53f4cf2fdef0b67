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

constexpr Kernels make_kernels(Isa isa) {
  Kernels kernels{};
  kernels.isa = isa;
  const auto set_matmul = [&](Product product, void (*matmul)(const MatmulArgs&)) {
    kernels.matmul[static_cast<int>(product)] = matmul;
  };
  [[maybe_unused]] const auto set_min_rows_bf16 = [&](WeightFormat format, int64_t rows) {
    kernels.min_rows_bf16[static_cast<int>(format)] = rows;
  };
  set_matmul(Product::f32, matmul_f32);
  kernels.quantize = quantize;
  kernels.to_tile_row = to_tile_row;
#if GPTOSS_VECTOR_BYTES >= 32
  set_matmul(Product::i16, matmul_i16);
#endif
#ifdef GPTOSS_BF16
  set_matmul(Product::bf16, matmul_bf16);
  // What decoding costs is shared by the rows (measured on a Zen 4).
  set_min_rows_bf16(WeightFormat::bf16, 2);
  set_min_rows_bf16(WeightFormat::mxfp4, 24);
  set_min_rows_bf16(WeightFormat::q8, 48);
  set_min_rows_bf16(WeightFormat::q8_0, 48);
  kernels.bf16_is_fast = bf16_is_fast;
#endif
#if defined(GPTOSS_AMX) || defined(GPTOSS_AMX_EMULATED)
#ifdef GPTOSS_AMX
  set_matmul(Product::bf16, matmul_amx<HardwareTiles>);
#else
  set_matmul(Product::bf16, matmul_amx<EmulatedTiles>);
#endif
  // A tile costs the same for 1 to 16 rows.
  set_min_rows_bf16(WeightFormat::mxfp4, 8);
  set_min_rows_bf16(WeightFormat::q8, 8);
  set_min_rows_bf16(WeightFormat::q8_0, 8);
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
