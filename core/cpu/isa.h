// The instruction sets that there are kernels for, their names, and which of them this CPU has.
#pragma once

#include <string>
#include <vector>

namespace gptoss::cpu {

enum class Isa : int {
  generic = 0,
  avx2 = 1,         // with FMA
  avx512 = 2,       // F, BW, VL, DQ
  avx512_vnni = 3,  // and VNNI
  avx512_bf16 = 4,  // and BF16
  amx = 5,          // and AMX-TILE, AMX-BF16
  amx_emulated = 6  // tiles in plain C++, for tests: never chosen unless named
};

const char* isa_name(Isa isa);

// Whether this CPU has it and the system saves its registers.
bool cpu_supports(Isa isa);

// Names of the CPU features that matter to the kernels and that this CPU has.
std::vector<std::string> cpu_features();

}  // namespace gptoss::cpu
