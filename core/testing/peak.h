// What the products of an instruction set could reach at best: for benchmarks.
#pragma once

#include <cstdint>

#include "core/cpu/isa.h"

namespace gptoss::testing {

// Runs so many rounds of the instruction set's fastest multiply-add instruction on registers alone;
// how many operations that were. The CPU must have it.
double peak(cpu::Isa isa, int64_t rounds);

}  // namespace gptoss::testing
