// The CUDA backend (backend.h's interface).
#pragma once

#include <cstddef>
#include <memory>

#include "backend.h"

namespace gptoss::cuda {

// Throws Error for options that it does not have.
std::unique_ptr<Backend> make_backend(const Options& options);

// Is there a device that can run it? `reason` says which one, or why not.
bool device_available(char* reason, size_t size);

}  // namespace gptoss::cuda
