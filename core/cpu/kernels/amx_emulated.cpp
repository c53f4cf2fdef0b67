// As amx.cpp, with tiles in plain C++: the AMX kernels' logic, testable where AMX is
// absent. Never chosen unless asked for by name.
#define GPTOSS_VECTOR_BYTES 64
#define GPTOSS_TILE_ROWS 8
#define GPTOSS_VNNI 1
#define GPTOSS_BF16 1
#define GPTOSS_AMX_EMULATED 1
#include "core/cpu/kernels/all-inl.h"

namespace gptoss::cpu {

constinit const Kernels kernels_amx_emulated = make_kernels(Isa::amx_emulated);

}  // namespace gptoss::cpu
