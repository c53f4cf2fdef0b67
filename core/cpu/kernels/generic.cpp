// The baseline of the target: SSE2 on x86-64, NEON on ARM, scalar elsewhere.
#define GPTOSS_VECTOR_BYTES 16
#define GPTOSS_TILE_ROWS 1
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

// Made by the compiler: code for an instruction set that the machine may lack must not run at load.
constinit const Kernels kernels_generic = make_kernels(Isa::generic);

}  // namespace gptoss::cpu
