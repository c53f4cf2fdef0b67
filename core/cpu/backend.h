// The CPU backend: the layer loop over the kernels of kernels.h.
#pragma once

#include <memory>

#include "../backend.h"

namespace gptoss::cpu {

// Throws Error when GPTOSS_CPU_ISA names an instruction set that is not usable here.
std::unique_ptr<Backend> make_backend(const Options& options);

}  // namespace gptoss::cpu
