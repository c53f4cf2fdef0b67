// CUDA's thread model on the CPU, so that kernels run, and are tested, where there is no GPU: a
// fiber for each thread of a block, blocks one after the other. What is checked on the way: a
// barrier that not all threads reach ends the process with a message; shared memory is poisoned
// before each block and has exactly the size that was asked for, so that AddressSanitizer sees what
// lies beyond; asynchronous copies and products (cp.async, TMA, wgmma) happen no sooner than they
// are waited for.
//
// Slow, and no statement about races between threads: fibers run one at a time.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

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

// A product that wgmma has begun: c (64, n) += a (64, 16) · b (n, 16)ᵀ.
struct Product {
  float* c;
  int n;
  const uint32_t* registers;  // a in registers, or null:
  uint32_t a, b;              // addresses in shared memory
};

// The running thread.
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
  unsigned char* shared;
  std::vector<std::vector<Copy>> copies;  // groups not yet waited for; the last is open
  std::vector<std::vector<Product>> products;
};
Thread& current();

void block_barrier();
// bar.sync with a number: among `threads` threads.
void named_barrier(int number, int threads);
// Gives way to other threads until `done`, or ends the process where that never happens.
void wait_until(const std::function<bool()>& done);
// Work that somebody begins and that is done when any thread of the block waits.
void defer(std::function<void()> work);
void run_deferred();
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
inline void __threadfence() {}

inline double cospi(double x) { return std::cos(std::fmod(x, 2.0) * 3.14159265358979323846); }
inline double sinpi(double x) { return std::sin(std::fmod(x, 2.0) * 3.14159265358979323846); }

using std::isfinite;
using std::isnan;
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

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  T result;
  __builtin_memcpy(&result,
                   emulated::warp_exchange(&value, sizeof value) +
                       static_cast<size_t>(from % warp_size) * emulated::warp_slot,
                   sizeof result);
  return result;
}

inline unsigned __ballot_sync(unsigned, bool mine) {
  const unsigned char* all = emulated::warp_exchange(&mine, sizeof mine);
  unsigned result = 0;
  for (size_t lane = 0; lane < warp_size; ++lane) {
    result |= static_cast<unsigned>(all[lane * emulated::warp_slot] != 0) << lane;
  }
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

// Fibers run one at a time.
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at += value;
  return before;
}

}  // namespace gptoss::cuda
