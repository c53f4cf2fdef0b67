// AVX-512 as in avx512_bf16.cpp, and AMX-TILE, AMX-BF16.
#define GPTOSS_VECTOR_BYTES 64
#define GPTOSS_TILE_ROWS 8
#define GPTOSS_VNNI 1
#define GPTOSS_BF16 1
#define GPTOSS_AMX 1
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

// Made by the compiler: code for an instruction set that the machine may lack must not run at load.
constinit const Kernels kernels_amx = make_kernels(Isa::amx);

}  // namespace gptoss::cpu
