// AVX-512 F, BW, VL, DQ.
#define GPTOSS_VECTOR_BYTES 64
#define GPTOSS_TILE_ROWS 8
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

// Made by the compiler: code for an instruction set that the machine may lack must not run at load.
constinit const Kernels kernels_avx512 = make_kernels(Isa::avx512);

}  // namespace gptoss::cpu
