// The CUDA backend (backend.h's interface).
#pragma once

#include <cstddef>
#include <memory>

#include "core/backend.h"

namespace gptoss::cuda {

// Throws Error for options that it does not have.
std::unique_ptr<Backend> make_backend(const Options& options);

// Fills `to` with one communicator for each of `ranks` GPUs (NCCL).
void make_communicators(int ranks, std::vector<std::unique_ptr<Communicator>>& to);

// Is there a device that can run it? `reason` says which one, or why not.
bool device_available(char* reason, size_t size);

}  // namespace gptoss::cuda
