// AVX2 and FMA.
#define GPTOSS_VECTOR_BYTES 32
#define GPTOSS_TILE_ROWS 6
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

// Made by the compiler: code for an instruction set that the machine may lack must not run at load.
constinit const Kernels kernels_avx2 = make_kernels(Isa::avx2);

}  // namespace gptoss::cpu
