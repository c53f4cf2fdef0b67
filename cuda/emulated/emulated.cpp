#include "cuda/emulated/emulated.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
// Saves what a call preserves on the stack, and the stack's pointer in *from; goes on where `to`
// was saved. (swapcontext would ask the system to change the signal mask each time.)
extern "C" void gptoss_switch_stack(void** from, void* to);
asm(R"(
.text
.globl gptoss_switch_stack
.hidden gptoss_switch_stack
.type gptoss_switch_stack, @function
gptoss_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gptoss_switch_stack, . - gptoss_switch_stack
)");
#endif

namespace gptoss::cuda::emulated {

namespace {

constexpr size_t stack_bytes = 64 << 10;

#if defined(__x86_64__)
using Context = void*;  // the stack's pointer
void switch_to(Context& from, Context& to) { gptoss_switch_stack(&from, to); }
void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  // As if `entry` had been called with the stack aligned to 16 bytes, and had saved six registers.
  auto* top = reinterpret_cast<uint64_t*>(stack + stack_bytes) - 2;
  *top = reinterpret_cast<uint64_t>(entry);
  context = top - 6;
}
#else
using Context = ucontext_t;
void switch_to(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = stack_bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

struct Warp {
  int arrived = 0;
  uint64_t generation = 0;
  alignas(64) unsigned char slots[2][warp_size * warp_slot];
};

struct Fiber {
  Thread thread;
  Context context;
  unsigned char* stack = nullptr;
  bool done = false;
  bool moved = false;  // since the scheduler last looked
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  const std::function<void()>* kernel = nullptr;
  Context scheduler;
  size_t running = 0;
  int arrived = 0, alive = 0;
  uint64_t generation = 0;
  struct Barrier {
    int arrived = 0;
    uint64_t generation = 0;
  } named[16];
  std::vector<std::function<void()>> deferred;
};

thread_local Block* block = nullptr;

[[noreturn]] void give_up(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

void yield() {
  Fiber& fiber = block->fibers[block->running];
  switch_to(fiber.context, block->scheduler);
}

void entry() {
  (*block->kernel)();
  Fiber& fiber = block->fibers[block->running];
  for (const auto& group : fiber.thread.copies) {
    if (!group.empty()) {
      give_up("a thread ends with copies that it did not wait for");
    }
  }
  for (const auto& group : fiber.thread.products) {
    if (!group.empty()) {
      give_up("a thread ends with products that it did not wait for");
    }
  }
  fiber.done = fiber.moved = true;
  --block->alive;
  switch_to(fiber.context, block->scheduler);
}

void run_block(Block& b) {
  block = &b;
  const int threads = static_cast<int>(b.fibers.size());
  b.alive = threads;
  b.arrived = 0;
  std::fill_n(b.shared, b.shared_bytes, static_cast<unsigned char>(0xff));
  for (Fiber& fiber : b.fibers) {
    fiber.done = false;
    fiber.thread.copies.assign(1, {});
    fiber.thread.products.assign(1, {});
    fiber.thread.shared = b.shared;
    prepare(fiber.context, fiber.stack, entry);
  }
  while (b.alive > 0) {
    bool moved = false;
    for (b.running = 0; b.running < b.fibers.size(); ++b.running) {
      Fiber& fiber = b.fibers[b.running];
      if (!fiber.done) {
        fiber.moved = false;
        switch_to(b.scheduler, fiber.context);
        moved |= fiber.moved;
      }
    }
    if (!moved && b.alive > 0) {
      give_up("threads wait at a barrier that others never reach");
    }
  }
  if (b.arrived != 0) {
    give_up("threads ended while others waited at a barrier");
  }
  if (!b.deferred.empty()) {
    give_up("a block ends with copies that nobody waited for");
  }
  block = nullptr;
}

}  // namespace

Thread& current() { return block->fibers[block->running].thread; }

void block_barrier() {
  Fiber& fiber = block->fibers[block->running];
  fiber.moved = true;
  const uint64_t generation = block->generation;
  if (++block->arrived == static_cast<int>(block->fibers.size())) {
    block->arrived = 0;
    ++block->generation;
    return;
  }
  while (block->generation == generation) {
    yield();
  }
  fiber.moved = true;
}

void named_barrier(int number, int threads) {
  Fiber& fiber = block->fibers[block->running];
  fiber.moved = true;
  Block::Barrier& barrier = block->named[number];
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) {
    yield();
  }
  fiber.moved = true;
}

void wait_until(const std::function<bool()>& done) {
  Fiber& fiber = block->fibers[block->running];
  run_deferred();
  while (!done()) {
    yield();
    run_deferred();
  }
  fiber.moved = true;
}

void defer(std::function<void()> work) {
  block->fibers[block->running].moved = true;
  block->deferred.push_back(std::move(work));
}

void run_deferred() {
  std::vector<std::function<void()>> work;
  work.swap(block->deferred);
  for (const auto& each : work) {
    each();
  }
}

const unsigned char* warp_exchange(const void* mine, size_t size) {
  if (size > warp_slot) {
    give_up("a warp exchanges more than a slot holds");
  }
  Fiber& fiber = block->fibers[block->running];
  fiber.moved = true;
  const auto lane = static_cast<size_t>(fiber.thread.thread_index.x % warp_size);
  Warp& warp = block->warps[static_cast<size_t>(fiber.thread.thread_index.x / warp_size)];
  const uint64_t generation = warp.generation;
  unsigned char* slots = warp.slots[generation % 2];
  std::memcpy(slots + lane * warp_slot, mine, size);
  if (++warp.arrived == warp_size) {
    warp.arrived = 0;
    ++warp.generation;
    return slots;
  }
  while (warp.generation == generation) {
    yield();
  }
  fiber.moved = true;
  return slots;
}

void run_grid(Index grid, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  if (threads <= 0 || threads > 1024 || threads % warp_size != 0) {
    throw std::invalid_argument("a block has whole warps and at most 1024 threads");
  }
  thread_local std::vector<std::unique_ptr<unsigned char[]>> stacks;  // kept between launches
  while (stacks.size() < static_cast<size_t>(threads)) {
    stacks.emplace_back(new unsigned char[stack_bytes]);
  }
  Block b;
  b.fibers = std::vector<Fiber>(static_cast<size_t>(threads));
  b.warps = std::vector<Warp>(static_cast<size_t>(threads / warp_size));
  // As aligned as TMA wants it, and not a byte longer than asked.
  void* shared = nullptr;
  if (posix_memalign(&shared, 1024, std::max<size_t>(shared_bytes, 1)) != 0) {
    throw std::bad_alloc();
  }
  const std::unique_ptr<void, decltype(&std::free)> owner(shared, std::free);
  b.shared = static_cast<unsigned char*>(shared);
  b.shared_bytes = shared_bytes;
  b.kernel = &kernel;
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = b.fibers[static_cast<size_t>(t)];
    fiber.stack = stacks[static_cast<size_t>(t)].get();
    fiber.thread.thread_index = {t, 0, 0};
    fiber.thread.block_size = {threads, 1, 1};
    fiber.thread.grid_size = grid;
  }
  for (int z = 0; z < grid.z; ++z) {
    for (int y = 0; y < grid.y; ++y) {
      for (int x = 0; x < grid.x; ++x) {
        for (Fiber& fiber : b.fibers) {
          fiber.thread.block_index = {x, y, z};
        }
        run_block(b);
      }
    }
  }
}

}  // namespace gptoss::cuda::emulated
