// Threads do not survive a fork: the child has only the one that called it, and locks that others
// held stay locked for ever. An owner of threads compares this number with the one at its creation.
#pragma once

#include <cstdint>

namespace gptoss {

// How many forks lie between this process and the one that loaded the library.
uint32_t forks();

}  // namespace gptoss
