#include "core/testing/peak.h"

namespace gptoss::testing {

namespace {

constexpr int sums = 8;  // independent ones, to hide the latency

#if defined(__x86_64__) && defined(__GNUC__)

// Written in assembly because the compiler must neither leave the work out nor keep its sums in
// memory. All registers are zero: no subnormal numbers slow the work down.
#define GPTOSS_EACH_SUM(before, after)                                                           \
  before "0" after "\n" before "1" after "\n" before "2" after "\n" before "3" after "\n" before \
         "4" after "\n" before "5" after "\n" before "6" after "\n" before "7" after "\n"
#define GPTOSS_SUMS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm15"
#define GPTOSS_PEAK(features, name, vector, instruction, operations)                             \
  __attribute__((target(features))) double name(int64_t rounds) {                                \
    asm volatile("vzeroall" : : : GPTOSS_SUMS);                                                  \
    for (int64_t i = 0; i < rounds; ++i) {                                                       \
      asm volatile(GPTOSS_EACH_SUM(instruction " %%" vector "15, %%" vector "15, %%" vector, "") \
                   :                                                                             \
                   :                                                                             \
                   : GPTOSS_SUMS);                                                               \
    }                                                                                            \
    return static_cast<double>(rounds) * sums * (operations);                                    \
  }

double peak_generic(int64_t rounds) {
  asm volatile(GPTOSS_EACH_SUM("xorps %%xmm15, %%xmm15\n xorps %%xmm15, %%xmm", "")
               :
               :
               : GPTOSS_SUMS);
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(GPTOSS_EACH_SUM("mulps %%xmm15, %%xmm", "")
                     GPTOSS_EACH_SUM("addps %%xmm15, %%xmm", "")
                 :
                 :
                 : GPTOSS_SUMS);
  }
  return static_cast<double>(rounds) * sums * 2 * 4;
}

#ifdef GPTOSS_HAVE_AVX2
GPTOSS_PEAK("avx2,fma", peak_avx2, "ymm", "vfmadd231ps", 2 * 8)
#endif
#ifdef GPTOSS_HAVE_AVX512
GPTOSS_PEAK("avx512f", peak_avx512, "zmm", "vfmadd231ps", 2 * 16)
#endif
#ifdef GPTOSS_HAVE_AVX512_BF16
GPTOSS_PEAK("avx512f,avx512bf16", peak_avx512_bf16, "zmm", "vdpbf16ps", 2 * 32)
#endif

#ifdef GPTOSS_HAVE_AMX
__attribute__((target("amx-tile,amx-bf16"))) double peak_amx(int64_t rounds) {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const config;
  asm volatile("ldtilecfg %0" : : "m"(config));
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n tdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n tdpbf16ps %%tmm7, %%tmm5, %%tmm3"
        :
        :);
  }
  asm volatile("tilerelease" : :);
  return static_cast<double>(rounds) * 4 * 2 * 16 * 16 * 32;
}
#endif

#else

double peak_generic(int64_t rounds) {
  float sum[sums * 4] = {};
  for (int64_t i = 0; i < rounds; ++i) {
    for (float& s : sum) {
      s = s * 0.5f + 0.5f;
    }
  }
  // The sums converge to 1 each: using them keeps the compiler from leaving the work out.
  return static_cast<double>(rounds) * sums * 4 * 2 + (sum[0] < 0.0f ? 1.0 : 0.0);
}

#endif

}  // namespace

double peak(cpu::Isa isa, int64_t rounds) {
  switch (isa) {
#ifdef GPTOSS_HAVE_AMX
    case cpu::Isa::amx:
      return peak_amx(rounds);
#endif
#ifdef GPTOSS_HAVE_AVX512_BF16
    case cpu::Isa::amx_emulated:
    case cpu::Isa::avx512_bf16:
      return peak_avx512_bf16(rounds);
#endif
#ifdef GPTOSS_HAVE_AVX512
    case cpu::Isa::avx512_vnni:
    case cpu::Isa::avx512:
      return peak_avx512(rounds);
#endif
#ifdef GPTOSS_HAVE_AVX2
    case cpu::Isa::avx2:
      return peak_avx2(rounds);
#endif
    default:
      return peak_generic(rounds);
  }
}

}  // namespace gptoss::testing
