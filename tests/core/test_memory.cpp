// What a machine without memory does to buffers and to a step: nothing that lasts.
#include <cstdlib>
#include <new>

#include "core/backend.h"
#include "core/cpu/linear.h"
#include "core/registry.h"
#include "tests/core/random_model.h"
#include "tests/core/run_model.h"
#include "tests/core/test.h"

using namespace gptoss;

namespace {

// Aligned allocations, which are those of the buffers, of this many bytes and more fail.
size_t limit = SIZE_MAX;

}  // namespace

void* operator new(size_t size, std::align_val_t alignment) {
  const auto align = static_cast<size_t>(alignment);
  void* memory =
      size < limit ? std::aligned_alloc(align, (size + align - 1) / align * align) : nullptr;
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

template <class Action>
bool runs_out_of_memory(const Action& action) {
  try {
    action();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

}  // namespace

TEST(a_buffer_that_could_not_grow_can_be_used_again) {
  cpu::Buffer<float> buffer;
  buffer.reserve(100)[99] = 1.0f;
  limit = 10000;
  CHECK(runs_out_of_memory([&] { buffer.reserve(100000); }));
  CHECK(buffer.data() == nullptr);
  float* small = buffer.reserve(50);  // smaller than what it once held
  CHECK(small != nullptr);
  small[49] = 2.0f;
  limit = SIZE_MAX;
  CHECK(buffer.reserve(100000) != nullptr);
}

// No matter which of a step's buffers cannot grow.
TEST(a_step_without_memory_harms_nothing) {
  for (const Activation activation : {Activation::f32, Activation::bf16}) {
    const ModelConfig config = test::small_config();
    test::RandomSource source(config);
    Options options;
    options.activation = activation;
    options.threads = 2;
    const auto backend = make_backend("cpu", "", options);
    backend->load(config, source);
    backend->alloc_kv(test::pages);
    const std::vector<float> before = test::run(*backend, test::text(5, 1), 5);
    bool failed = true;
    int failures = 0;
    for (size_t bytes = 2000; failed; bytes += bytes / 4) {
      limit = bytes;
      failed = runs_out_of_memory([&] { test::run(*backend, test::text(64, 2), 64); });
      failures += failed ? 1 : 0;
      limit = SIZE_MAX;
      CHECK(test::run(*backend, test::text(5, 1), 5) == before);
    }
    CHECK(failures > 3);
  }
}
