#include "core/forks.h"

#include <atomic>

#if __has_include(<pthread.h>)
#include <pthread.h>
#define GPTOSS_HAVE_ATFORK 1
#endif

namespace gptoss {

namespace {

std::atomic<uint32_t> count = 0;

#ifdef GPTOSS_HAVE_ATFORK
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { ++count; });
#endif

}  // namespace

uint32_t forks() { return count.load(std::memory_order_relaxed); }

}  // namespace gptoss
