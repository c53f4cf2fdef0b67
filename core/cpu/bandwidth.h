// What bench.py measures the engine against: how fast this machine's threads read memory.
#pragma once

#include <cstdint>

#include "cpu/threads.h"

namespace gptoss::cpu {

// The sum (modulo 2^64) of data (n), read once by all threads. The caller takes the time and
// chooses n far larger than the caches.
uint64_t read_all(const uint64_t* data, int64_t n, ThreadPool& threads);

}  // namespace gptoss::cpu
