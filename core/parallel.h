// A model on several devices of this machine: one backend per rank, each on a thread of its own.
// Tested with ranks that are threads on one CPU; it has never run on two GPUs.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "core/comm.h"

namespace gptoss {

// create: a rank's backend; called on that rank's thread with the shard and the communicator
// filled in. communicators: one per rank.
std::unique_ptr<Backend> make_parallel_backend(
    const Options& options, std::vector<std::unique_ptr<Communicator>> communicators,
    const std::function<std::unique_ptr<Backend>(const Options&)>& create);

}  // namespace gptoss
