// AVX-512 F, BW, VL, DQ, VNNI, BF16.
#define GPTOSS_VECTOR_BYTES 64
#define GPTOSS_TILE_ROWS 8
#define GPTOSS_VNNI 1
#define GPTOSS_BF16 1
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

// Made by the compiler: code for an instruction set that the machine may lack must not run at load.
constinit const Kernels kernels_avx512_bf16 = make_kernels(Isa::avx512_bf16);

}  // namespace gptoss::cpu
