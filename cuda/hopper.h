// Hopper's own: TMA, mbarrier, wgmma (sm_90a), and what they do for the emulation. (PTX ISA 9.0:
// "cp.async.bulk.tensor", "mbarrier", "wgmma.mma_async", "setmaxnreg".)
#pragma once

#include "cuda/layout.h"
#include "cuda/ptx.h"

#ifndef GPTOSS_CUDA_EMULATED
#include <cuda.h>
#endif

// Whether this code is for a chip that has them; kernels have no body otherwise.
#if defined(GPTOSS_CUDA_EMULATED) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GPTOSS_HOPPER 1
#endif

namespace gptoss::cuda {

// --- Tiles by TMA ---

constexpr int tma_columns = 64;  // of bf16: 128 bytes, a row of the swizzle

// A matrix of bf16 in memory, read in tiles of box_rows × 64; what lies outside reads as zero.
#ifdef GPTOSS_CUDA_EMULATED
struct TensorMap {
  const bf16* base;
  int64_t rows, columns, stride;
  int box_rows;
};
#else
using TensorMap = CUtensorMap;
#endif
// Throws Error when the driver refuses it. stride: elements from row to row, a multiple of 8.
TensorMap make_tensor_map(const bf16* base, int64_t rows, int64_t columns, int64_t stride,
                          int box_rows);

// --- Barriers in shared memory, which count arrivals and bytes ---

struct Barrier {
#ifdef GPTOSS_CUDA_EMULATED
  uint64_t phase : 1, count : 15, pending : 15;
  int64_t bytes : 33;
  void complete() {
    if (pending == 0 && bytes == 0) {
      phase ^= 1u;
      pending = count;
    }
  }
#else
  uint64_t state;
#endif
};
static_assert(sizeof(Barrier) == 8);

#ifdef GPTOSS_HOPPER

__device__ inline uint32_t shared_address(const void* at) {
#ifdef GPTOSS_CUDA_EMULATED
  return static_cast<uint32_t>(static_cast<const unsigned char*>(at) - emulated::current().shared);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
#endif
}

// `count` arrivals end a phase.
__device__ inline void initialise(Barrier& barrier, int count) {
#ifdef GPTOSS_CUDA_EMULATED
  barrier.phase = 0;
  barrier.bytes = 0;
  barrier.count = barrier.pending = static_cast<uint64_t>(count) & 0x7fffu;
#else
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" : : "r"(shared_address(&barrier)), "r"(count));
#endif
}

// After initialise, before other threads and TMA use the barriers (and before __syncthreads).
__device__ inline void publish_barriers() {
#ifndef GPTOSS_CUDA_EMULATED
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
#endif
}

__device__ inline void arrive(Barrier& barrier) {
#ifdef GPTOSS_CUDA_EMULATED
  barrier.pending = (barrier.pending - 1u) & 0x7fffu;
  barrier.complete();
#else
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" : : "r"(shared_address(&barrier)) : "memory");
#endif
}

// Arrives, and lets the phase wait for `bytes` bytes of TMA.
__device__ inline void arrive_and_expect(Barrier& barrier, int bytes) {
#ifdef GPTOSS_CUDA_EMULATED
  barrier.bytes = barrier.bytes + bytes;
  arrive(barrier);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;"
               :
               : "r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
#endif
}

// Until the phase of this parity has ended.
__device__ inline void wait(Barrier& barrier, int parity) {
#ifdef GPTOSS_CUDA_EMULATED
  emulated::wait_until([&] { return static_cast<int>(barrier.phase) != parity; });
#else
  asm volatile(
      "{\n.reg .pred p;\nagain:\n"
      "mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
      "@p bra done;\nbra again;\ndone:\n}\n"
      :
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
#endif
}

// Starts reading the tile at (row, column) to shared memory (aligned to 1024 bytes), swizzled.
__device__ inline void load_tile(void* to, const TensorMap& map, int column, int row,
                                 Barrier& barrier) {
#ifdef GPTOSS_CUDA_EMULATED
  const TensorMap* from = &map;
  emulated::defer([=, &barrier] {
    for (int r = 0; r < from->box_rows; ++r) {
      for (int c = 0; c < tma_columns; ++c) {
        const bool inside = row + r < from->rows && column + c < from->columns;
        const bf16 value = inside ? from->base[(row + r) * from->stride + column + c] : bf16{0};
        std::memcpy(static_cast<unsigned char*>(to) + swizzled(r, c / 8, 8) + c % 8 * 2, &value, 2);
      }
    }
    barrier.bytes = barrier.bytes - from->box_rows * tma_columns * 2;
    barrier.complete();
  });
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];"
      :
      : "r"(shared_address(to)), "l"(&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
      : "memory");
#endif
}

// --- wgmma: products of a warpgroup, four warps ---

// An operand in shared memory: rows of 128 bytes in the 128-byte swizzle, aligned to 1024 bytes;
// + 32 bytes for each 16 columns within the row.
__device__ inline uint64_t operand(const void* tile, int column) {
  const uint32_t address = shared_address(tile) + static_cast<uint32_t>(column) * 2;
  constexpr uint64_t eight_rows = 1024 >> 4, swizzle_128 = 1;
  return (address & 0x3ffffu) >> 4 | uint64_t{1} << 16 | eight_rows << 32 | swizzle_128 << 62;
}

// Before the first product, and after registers that products use were written.
__device__ inline void begin_products() {
#ifndef GPTOSS_CUDA_EMULATED
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
#endif
}

// What threads (and not TMA) wrote to shared memory is seen by products after this.
__device__ inline void publish_to_products() {
#ifndef GPTOSS_CUDA_EMULATED
  asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
#endif
}

__device__ inline void commit_products() {
#ifdef GPTOSS_CUDA_EMULATED
  emulated::current().products.emplace_back();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
#endif
}

#ifdef GPTOSS_CUDA_EMULATED
inline float operand_element(uint32_t operand_start, int row, int column) {
  const uint32_t plain = operand_start + static_cast<uint32_t>(row * 128 + column * 2);
  bf16 value;
  std::memcpy(&value, emulated::current().shared + (plain ^ (plain >> 7 & 7u) << 4), sizeof value);
  return to_float(value);
}

inline void multiply_now(const emulated::Product& p) {
  const int lane = threadIdx.x % warp_size, warp = threadIdx.x / warp_size % 4;
  float a[2][16];  // rows g and g + 8 of this warp's 16
  const unsigned char* all = nullptr;
  if (p.registers != nullptr) {
    all = emulated::warp_exchange(p.registers, 4 * sizeof(uint32_t));
  }
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 16; ++k) {
      if (p.registers != nullptr) {
        bf16 value;
        std::memcpy(&value,
                    all + static_cast<size_t>(lane / 4 * 4 + k % 8 / 2) * emulated::warp_slot +
                        (k / 8 * 2 + half) * 4 + k % 2 * 2,
                    sizeof value);
        a[half][k] = to_float(value);
      } else {
        a[half][k] = operand_element(p.a, warp * 16 + lane / 4 + half * 8, k);
      }
    }
  }
  for (int i = 0; i < p.n / 2; ++i) {
    const int n = i / 4 * 8 + lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      p.c[i] += a[i % 4 / 2][k] * operand_element(p.b, n, k);
    }
  }
}
#endif

// Until at most `pending` groups of products are under way.
template <int pending>
__device__ inline void wait_for_products() {
#ifdef GPTOSS_CUDA_EMULATED
  auto& groups = emulated::current().products;
  while (static_cast<int>(groups.size()) - 1 > pending) {
    const auto group = groups.front();
    groups.erase(groups.begin());
    for (const emulated::Product& product : group) {
      multiply_now(product);
    }
  }
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(pending) : "memory");
#endif
}

#ifdef GPTOSS_CUDA_EMULATED
inline void defer_product(float* c, int n, const uint32_t* registers, uint64_t a, uint64_t b,
                          bool add) {
  const auto start = [](uint64_t descriptor) {
    return static_cast<uint32_t>(descriptor & 0x3fffu) << 4;
  };
  if (!add) {
    std::fill_n(c, n / 2, 0.0f);
  }
  emulated::current().products.back().push_back({c, n, registers, start(a), start(b)});
}
#endif

#define GPTOSS_SUMS_4(c, i) "+f"(c[i]), "+f"(c[(i) + 1]), "+f"(c[(i) + 2]), "+f"(c[(i) + 3])
#define GPTOSS_SUMS_16(c, i)                                                 \
  GPTOSS_SUMS_4(c, i), GPTOSS_SUMS_4(c, (i) + 4), GPTOSS_SUMS_4(c, (i) + 8), \
      GPTOSS_SUMS_4(c, (i) + 12)

// c (64, n) = a (64, 16) · b (n, 16)ᵀ, + c where `add`. Thread l of warp w holds rows 16 · w + l /
// 4 and + 8 as mma.m16n8k16's, eight columns after the other. Operands: operand().
__device__ inline void multiply_tiles(float (&c)[64], uint64_t a, uint64_t b, int add) {
#ifdef GPTOSS_CUDA_EMULATED
  defer_product(c, 128, nullptr, a, b, add != 0);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, 0;\n}\n"
      : GPTOSS_SUMS_16(c, 0), GPTOSS_SUMS_16(c, 16), GPTOSS_SUMS_16(c, 32), GPTOSS_SUMS_16(c, 48)
      : "l"(a), "l"(b), "r"(add));
#endif
}
__device__ inline void multiply_tiles(float (&c)[96], uint64_t a, uint64_t b, int add) {
#ifdef GPTOSS_CUDA_EMULATED
  defer_product(c, 192, nullptr, a, b, add != 0);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
      "}, %96, %97, p, 1, 1, 0, 0;\n}\n"
      : GPTOSS_SUMS_16(c, 0), GPTOSS_SUMS_16(c, 16), GPTOSS_SUMS_16(c, 32), GPTOSS_SUMS_16(c, 48),
        GPTOSS_SUMS_16(c, 64), GPTOSS_SUMS_16(c, 80)
      : "l"(a), "l"(b), "r"(add));
#endif
}
__device__ inline void multiply_tiles(float (&c)[128], uint64_t a, uint64_t b, int add) {
#ifdef GPTOSS_CUDA_EMULATED
  defer_product(c, 256, nullptr, a, b, add != 0);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
      "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "
      "%124, %125, %126, %127"
      "}, %128, %129, p, 1, 1, 0, 0;\n}\n"
      : GPTOSS_SUMS_16(c, 0), GPTOSS_SUMS_16(c, 16), GPTOSS_SUMS_16(c, 32), GPTOSS_SUMS_16(c, 48),
        GPTOSS_SUMS_16(c, 64), GPTOSS_SUMS_16(c, 80), GPTOSS_SUMS_16(c, 96), GPTOSS_SUMS_16(c, 112)
      : "l"(a), "l"(b), "r"(add));
#endif
}

// The same with a in registers, spread as mma.m16n8k16's; they must stay as they are until the
// product has been waited for.
__device__ inline void multiply_tiles(float (&c)[32], const uint32_t (&a)[4], uint64_t b, int add) {
#ifdef GPTOSS_CUDA_EMULATED
  defer_product(c, 64, a, 0, b, add != 0);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
      : GPTOSS_SUMS_16(c, 0), GPTOSS_SUMS_16(c, 16)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
}
__device__ inline void multiply_tiles(float (&c)[64], const uint32_t (&a)[4], uint64_t b, int add) {
#ifdef GPTOSS_CUDA_EMULATED
  defer_product(c, 128, a, 0, b, add != 0);
#else
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
      : GPTOSS_SUMS_16(c, 0), GPTOSS_SUMS_16(c, 16), GPTOSS_SUMS_16(c, 32), GPTOSS_SUMS_16(c, 48)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
#endif
}

// Registers of this warpgroup's threads: what a producer gives, consumers take.
template <int registers>
__device__ inline void give_registers() {
#ifndef GPTOSS_CUDA_EMULATED
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" : : "n"(registers));
#endif
}
template <int registers>
__device__ inline void take_registers() {
#ifndef GPTOSS_CUDA_EMULATED
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" : : "n"(registers));
#endif
}

#endif  // GPTOSS_HOPPER

}  // namespace gptoss::cuda
