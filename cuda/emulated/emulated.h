// CUDA's thread model on the CPU, so that kernels run, and are tested, where there is no GPU: a
// fiber for each thread of a block, blocks one after the other. What is checked on the way: a
// barrier that not all threads reach ends the process with a message; shared memory is poisoned
// before each block and has exactly the size that was asked for, so that AddressSanitizer sees what
// lies beyond; asynchronous copies happen no sooner than they are waited for.
//
// Slow, and no statement about races between threads: fibers run one at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace gptoss::cuda {

constexpr int warp_size = 32;

struct Index {
  int x = 0, y = 0, z = 0;
};

namespace emulated {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;  // the rest of the 16 is zeroed
};

// The running thread.
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
  unsigned char* shared;
  std::vector<std::vector<Copy>> copies;  // groups not yet waited for; the last is open
};
Thread& current();

void block_barrier();
// Every lane of the warp gives `size` bytes and receives all 32 lanes' (stride warp_slot), valid
// until the next exchange but one.
constexpr size_t warp_slot = 64;
const unsigned char* warp_exchange(const void* mine, size_t size);

void run_grid(Index grid, int threads, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace emulated

#define threadIdx (::gptoss::cuda::emulated::current().thread_index)
#define blockIdx (::gptoss::cuda::emulated::current().block_index)
#define blockDim (::gptoss::cuda::emulated::current().block_size)
#define gridDim (::gptoss::cuda::emulated::current().grid_size)
#define GPTOSS_SHARED(name) unsigned char* name = ::gptoss::cuda::emulated::current().shared

inline void __syncthreads() { emulated::block_barrier(); }
inline void __syncwarp() {
  const char nothing = 0;
  emulated::warp_exchange(&nothing, 1);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int lane = threadIdx.x % warp_size;
  T result;
  __builtin_memcpy(&result,
                   emulated::warp_exchange(&value, sizeof value) +
                       static_cast<size_t>(lane ^ mask) * emulated::warp_slot,
                   sizeof result);
  return result;
}

}  // namespace gptoss::cuda
