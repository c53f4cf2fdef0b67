// Inline PTX for sm_80 and later, and what it does in plain C++ for the emulation; what is
// Hopper's alone is in hopper.h. (PTX ISA 9.0: "cp.async", "ldmatrix", "mma.m16n8k16",
// "griddepcontrol", "createpolicy".)
#pragma once

#include "cuda/runtime.h"

// Before a loop whose body is large enough: unrolled, it would only spill registers.
#ifdef GPTOSS_CUDA_EMULATED
#define GPTOSS_KEEP_LOOP
#else
#define GPTOSS_KEEP_LOOP _Pragma("unroll 1")
#endif

namespace gptoss::cuda {

// Programmatic dependent launch: every kernel calls this before it touches what another kernel
// writes or reads; before it, it may read weights.
__device__ inline void wait_for_previous() {
#if !defined(GPTOSS_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}

// The next kernel may start, and wait.
__device__ inline void start_next() {
#if !defined(GPTOSS_CUDA_EMULATED) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}

// Moves a T between a value and memory that is aligned for it, with one instruction (a plain memcpy
// from bytes would be taken apart).
template <class T>
__device__ inline void load_aligned(T* to, const void* from) {
  memcpy(to, __builtin_assume_aligned(from, sizeof(T)), sizeof(T));
}
template <class T>
__device__ inline void store_aligned(void* to, const T* from) {
  memcpy(__builtin_assume_aligned(to, sizeof(T)), from, sizeof(T));
}

struct alignas(16) Words {
  uint32_t word[4];
};

// What other blocks of the same kernel have written: from the L2 cache, the L1 may be behind.
template <class T>
__device__ inline T load_from_other_blocks(const T* from) {
#ifdef GPTOSS_CUDA_EMULATED
  return *from;
#else
  return __ldcg(from);
#endif
}

// 16 bytes of weights, which are read once: they do not push other things out of the caches.
__device__ inline Words load_once(const void* from) {
  Words result;
#ifdef GPTOSS_CUDA_EMULATED
  std::memcpy(&result, from, sizeof result);
#else
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
      : "=r"(result.word[0]), "=r"(result.word[1]), "=r"(result.word[2]), "=r"(result.word[3])
      : "l"(from), "l"(policy));
#endif
  return result;
}

// Starts a copy of 16 bytes to shared memory, of which `bytes` (0 … 16) are read and the rest are
// zero.
__device__ inline void copy_async(void* shared, const void* global, int bytes) {
#ifdef GPTOSS_CUDA_EMULATED
  emulated::current().copies.back().push_back({shared, global, static_cast<size_t>(bytes)});
#else
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(global), "r"(bytes)
               : "memory");
#endif
}

// Ends a group of copies.
__device__ inline void commit_copies() {
#ifdef GPTOSS_CUDA_EMULATED
  emulated::current().copies.emplace_back();
#else
  asm volatile("cp.async.commit_group;" : : : "memory");
#endif
}

// Waits until at most `pending` groups of this thread are under way.
template <int pending>
__device__ inline void wait_for_copies() {
#ifdef GPTOSS_CUDA_EMULATED
  auto& groups = emulated::current().copies;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const emulated::Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    groups.erase(groups.begin());
  }
#else
  asm volatile("cp.async.wait_group %0;" : : "n"(pending) : "memory");
#endif
}

// Four 8 × 8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 and
// receives, of each matrix, elements 2 · (l % 4) and the next of row l / 4.
__device__ inline void load_matrices(uint32_t (&result)[4], const void* row) {
#ifdef GPTOSS_CUDA_EMULATED
  const unsigned char* rows = emulated::warp_exchange(&row, sizeof row);
  const int lane = threadIdx.x % warp_size;
  for (int m = 0; m < 4; ++m) {
    const unsigned char* from;
    std::memcpy(&from, rows + static_cast<size_t>(m * 8 + lane / 4) * emulated::warp_slot,
                sizeof from);
    std::memcpy(&result[m], from + lane % 4 * 4, 4);
  }
#else
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(from)
               : "memory");
#endif
}

// The same, each matrix transposed: lane l receives elements (2 · (l % 4), l / 4) and the next
// row's.
__device__ inline void load_matrices_transposed(uint32_t (&result)[4], const void* row) {
#ifdef GPTOSS_CUDA_EMULATED
  const unsigned char* rows = emulated::warp_exchange(&row, sizeof row);
  const int lane = threadIdx.x % warp_size;
  for (int m = 0; m < 4; ++m) {
    for (int i = 0; i < 2; ++i) {
      const unsigned char* from;
      std::memcpy(&from, rows + static_cast<size_t>(m * 8 + lane % 4 * 2 + i) * emulated::warp_slot,
                  sizeof from);
      std::memcpy(reinterpret_cast<unsigned char*>(&result[m]) + i * 2, from + lane / 4 * 2, 2);
    }
  }
#else
  const auto from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(from)
               : "memory");
#endif
}

// Two bf16 in a word, the first in its lower half.
__device__ inline uint32_t pack_pair(float first, float second) {
  return static_cast<uint32_t>(to_bf16(first).bits) | static_cast<uint32_t>(to_bf16(second).bits)
                                                          << 16;
}

// The products of two pairs of bf16, each rounded to bf16 (subnormals too).
__device__ inline uint32_t multiply_pairs(uint32_t a, uint32_t b) {
#ifdef GPTOSS_CUDA_EMULATED
  const auto low = [](uint32_t pair) { return bits_to_float(pair << 16); };
  const auto high = [](uint32_t pair) { return bits_to_float(pair & 0xffff0000u); };
  return pack_pair(low(a) * low(b), high(a) * high(b));
#else
  uint32_t result;  // (a · b) + (−0), which leaves a zero its sign
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(0x80008000u));
  return result;
#endif
}

// c (16, 8) += a (16, 16) · b (16, 8), spread over the lanes of a warp: with g = lane / 4 and
// t = 2 · (lane % 4), c holds (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1); a pairs at (g, t),
// (g + 8, t), (g, t + 8), (g + 8, t + 8); b pairs of column g at rows t and t + 8.
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
#ifdef GPTOSS_CUDA_EMULATED
  uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const unsigned char* all = emulated::warp_exchange(mine, sizeof mine);
  const auto element = [&](int lane, int word, int half) {
    bf16 value;
    std::memcpy(&value, all + static_cast<size_t>(lane) * emulated::warp_slot + word * 4 + half * 2,
                sizeof value);
    return to_float(value);
  };
  const int lane = threadIdx.x % warp_size;
  for (int i = 0; i < 4; ++i) {
    const int n = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int of_k = k % 8 / 2;
      c[i] += element(lane / 4 * 4 + of_k, k / 8 * 2 + i / 2, k % 2) *
              element(n * 4 + of_k, 4 + k / 8, k % 2);
    }
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

}  // namespace gptoss::cuda
