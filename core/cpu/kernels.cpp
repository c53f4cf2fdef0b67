#include "cpu/kernels.h"

#include "check.h"

namespace gptoss::cpu {

const Kernels* find_kernels(Isa isa) {
  static constexpr const Kernels* built[] = {
      &kernels_generic,
#ifdef GPTOSS_HAVE_AVX2
      &kernels_avx2,
#endif
#ifdef GPTOSS_HAVE_AVX512
      &kernels_avx512,
#endif
#ifdef GPTOSS_HAVE_AVX512_VNNI
      &kernels_avx512_vnni,
#endif
#ifdef GPTOSS_HAVE_AVX512_BF16
      &kernels_avx512_bf16,
#endif
#ifdef GPTOSS_HAVE_AMX
      &kernels_amx,
#endif
#ifdef GPTOSS_HAVE_AMX_EMULATED
      &kernels_amx_emulated,
#endif
  };
  for (const Kernels* kernels : built) {
    if (kernels->isa == isa) {
      return kernels;
    }
  }
  return nullptr;
}

const Kernels& kernels_for(Isa isa) {
  const Kernels* kernels = find_kernels(isa);
  GPTOSS_CHECK(kernels != nullptr, "this build has no {} kernels", isa_name(isa));
  return *kernels;
}

}  // namespace gptoss::cpu
