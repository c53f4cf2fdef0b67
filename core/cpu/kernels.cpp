#include "cpu/kernels.h"

#include "check.h"

namespace gptoss::cpu {

const Kernels& kernels_for(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return kernels_generic;
    case Isa::avx2:
#ifdef GPTOSS_HAVE_AVX2
      return kernels_avx2;
#else
      break;
#endif
    case Isa::avx512:
#ifdef GPTOSS_HAVE_AVX512
      return kernels_avx512;
#else
      break;
#endif
  }
  throw Error(format("this build has no {} kernels", isa_name(isa)));
}

}  // namespace gptoss::cpu
