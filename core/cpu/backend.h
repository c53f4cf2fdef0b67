// The CPU backend: the layer loop over the kernels of kernels/table.h.
#pragma once

#include <memory>
#include <string>

#include "core/backend.h"

namespace gptoss::cpu {

// Throws Error when GPTOSS_CPU_ISA names an instruction set that is not usable here.
std::unique_ptr<Backend> make_backend(const Options& options);

// For people: which kernels it uses, or why it cannot be made. Does not throw.
std::string describe_backend();

}  // namespace gptoss::cpu
