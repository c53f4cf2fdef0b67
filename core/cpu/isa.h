// Which instruction set the kernels of this process use: chosen once, by what the CPU has, or
// forced by the environment variable GPTOSS_CPU_ISA.
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

// Built into this library and supported by this CPU, slowest first; `generic` always is.
std::vector<Isa> usable_isas();

// The same, and what is only for tests.
std::vector<Isa> testable_isas();

// Throws Error listing the usable names when the name is unknown or not usable here.
Isa parse_isa(const std::string& name);

// GPTOSS_CPU_ISA if set and not empty, otherwise the last of usable_isas(), except that
// avx512_bf16 must have proven faster than float32 arithmetic. Throws as parse_isa.
Isa select_isa();

// For people: the instruction set in use and why, without throwing.
std::string describe_isa();

// Names of the CPU features that matter to the kernels and that this CPU has.
std::vector<std::string> cpu_features();

// Threads that this process may use: its CPU affinity, bounded by a cgroup quota where one is set.
int usable_threads();

}  // namespace gptoss::cpu
