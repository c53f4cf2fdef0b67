// Which instruction set the kernels of this process use: chosen once, by what the CPU has, or
// forced by the environment variable GPTOSS_CPU_ISA.
#pragma once

#include <string>
#include <vector>

#include "core/cpu/isa.h"
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {

// Built into this library and supported by this CPU, slowest first; `generic` always is.
std::vector<Isa> usable_isas();

// The same, and those that were added.
std::vector<Isa> testable_isas();

// Registers kernels that this library is built without, before any are chosen: those that are
// only for tests. They are never chosen unless named.
void add_kernels(const Kernels& kernels);

// Throws Error listing the usable names when the name is unknown or not usable here.
Isa parse_isa(const std::string& name);

// GPTOSS_CPU_ISA if set and not empty, otherwise the last of usable_isas(), except that
// avx512_bf16 must have proven faster than float32 arithmetic. Throws as parse_isa.
Isa select_isa();

// For people: the instruction set in use and why, without throwing.
std::string describe_isa();

// Null where there are none.
const Kernels* find_kernels(Isa isa);

// The table of an instruction set that testable_isas() lists.
const Kernels& kernels_for(Isa isa);

}  // namespace gptoss::cpu
