// What the products of an instruction set could reach at best: for benchmarks.
#pragma once

#include <cstdint>

#include "core/cpu/isa.h"

namespace gptoss::testing {

// Runs the instruction set's fastest multiply-add on registers alone, `rounds` times over; returns
// how many operations that was. The CPU must have it.
double peak(cpu::Isa isa, int64_t rounds);

}  // namespace gptoss::testing
