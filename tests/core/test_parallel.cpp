// A model on several ranks beside the same model on one: the CPU backend and, emulated, CUDA's.
#include <algorithm>
#include <cmath>
#include <new>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/parallel.h"
#include "core/registry.h"
#include "cuda/cuda_backend.h"
#include "tests/core/forked.h"
#include "tests/core/random_model.h"
#include "tests/core/run_model.h"
#include "tests/core/test.h"

using namespace gptoss;
using test::distance, test::pages, test::run, test::Sequence, test::step, test::text;

namespace {

ModelConfig config_for_ranks() {
  ModelConfig c = test::small_config();
  c.num_attention_heads = 8;
  c.num_key_value_heads = 4;
  c.num_experts = c.experts_per_token = 4;  // nothing depends on a rounding
  return c;
}

std::vector<float> logits(const std::string& device, int ranks, int chunk, Activation activation,
                          DenseWeights weights = DenseWeights::published,
                          const ModelConfig& config = config_for_ranks()) {
  Options options;
  options.activation = activation;
  options.weights = weights;
  options.threads = 1;
  options.ranks = ranks;
  test::RandomSource source(config);
  std::unique_ptr<Backend> backend;
  if (device == "cpu") {
    backend = make_backend("cpu", "", options);
  } else if (ranks == 1) {
    backend = cuda::make_backend(options);
  } else {
    std::vector<std::unique_ptr<Communicator>> communicators;
    cuda::make_communicators(ranks, communicators);
    backend = make_parallel_backend(options, std::move(communicators), cuda::make_backend);
  }
  backend->load(config, source);
  backend->alloc_kv(pages);
  return run(*backend, text(40, 1), chunk);
}

std::string message(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

// In float32 nothing is rounded but sums: 4 layers' worth of other orders.
TEST(ranks_compute_what_one_computes) {
  const std::vector<float> wanted = logits("cpu", 1, 40, Activation::f32);
  for (const int ranks : {2, 4}) {
    for (const int chunk : {40, 1, 7}) {
      CHECK(distance(logits("cpu", ranks, chunk, Activation::f32), wanted) < 1e-5);
    }
  }
}

TEST(ranks_that_none_of_the_tokens_experts_belong_to) {
  ModelConfig config = config_for_ranks();
  config.experts_per_token = 1;
  const auto found = [&](int ranks) {
    return logits("cpu", ranks, 1, Activation::f32, DenseWeights::published, config);
  };
  CHECK(distance(found(4), found(1)) < 1e-5);
}

TEST(ranks_with_eight_bit_weights) {
  const auto found = [](int ranks) {
    return logits("cpu", ranks, 40, Activation::bf16, DenseWeights::q8);
  };
  const std::vector<float> exact = logits("cpu", 1, 40, Activation::f32, DenseWeights::published);
  CHECK(distance(found(2), exact) < 1.5 * distance(found(1), exact));
}

#ifndef GPTOSS_TSAN
TEST(ranks_of_cuda_compute_what_one_computes) {
  const std::vector<float> exact = logits("cpu", 1, 40, Activation::f32);
  const double one = distance(logits("cuda", 1, 40, Activation::bf16), exact);
  for (const int chunk : {40, 1, 7}) {
    CHECK(distance(logits("cuda", 2, chunk, Activation::bf16), exact) < 1.5 * one);
  }
}
#endif

TEST(what_does_not_divide_is_named) {
  CHECK(message([] {
          logits("cpu", 3, 40, Activation::f32);
        }).find("divides 8 heads, 4 KV heads and 4 experts, found 3") != std::string::npos);
  CHECK(message([] { logits("cpu", 9, 40, Activation::f32); }).find("1 to 8 ranks, found 9") !=
        std::string::npos);
}

TEST(a_bad_batch_leaves_the_group_usable) {
  Options options;
  options.activation = Activation::f32;
  options.threads = 1;
  options.ranks = 2;
  const ModelConfig config = config_for_ranks();
  test::RandomSource source(config);
  const std::unique_ptr<Backend> backend = make_backend("cpu", "", options);
  backend->load(config, source);
  backend->alloc_kv(pages);
  Sequence bad{{0, config.vocab_size}, 0};
  std::vector<float> unused;
  CHECK(message([&] { step(*backend, {&bad}, {2}, {&unused}); }).find("token id must lie in") !=
        std::string::npos);
  CHECK(distance(run(*backend, text(40, 1), 40), logits("cpu", 1, 40, Activation::f32)) < 1e-5);
}

namespace {

// A rank that only adds up a number over the ranks, one a token, and gives the sums as logits. The
// second rank runs out of memory in its first step.
class Adding final : public Backend {
public:
  explicit Adding(const Options& options) : options_(options) {}
  void load(const ModelConfig&, WeightSource&) override {}
  int64_t page_bytes() const override { return 1; }
  void alloc_kv(int64_t) override {}
  void step(const Batch& batch, const Output& output) override {
    if (options_.shard.rank == 1 && !std::exchange(failed_, true)) {
      throw std::bad_alloc();
    }
    std::vector<float> values(static_cast<size_t>(batch.num_tokens), 1.0f);
    for (int layer = 0; layer < 3; ++layer) {
      options_.communicator->all_reduce(values.data(), batch.num_tokens, nullptr);
    }
    if (output.logits != nullptr) {
      std::copy(values.begin(), values.end(), output.logits);
    }
  }
  std::vector<std::pair<std::string, std::string>> info() const override { return {}; }

private:
  Options options_;
  bool failed_ = false;
};

}  // namespace

TEST(a_rank_without_memory_fails_its_step_alone) {
  constexpr int ranks = 3;
  const std::unique_ptr<Backend> backend = make_parallel_backend(
      {}, thread_communicators(ranks),
      [](const Options& options) { return std::make_unique<Adding>(options); });
  std::vector<float> sums(4, 0.0f);
  Batch batch;
  batch.num_tokens = 4;
  Output output;
  output.logits = sums.data();
  bool thrown = false;
  try {
    backend->step(batch, output);
  } catch (const std::bad_alloc&) {  // and not "another rank has failed"
    thrown = true;
  }
  CHECK(thrown);
  for (int again = 0; again < 3; ++again) {
    backend->step(batch, output);
    CHECK(sums == std::vector<float>(4, 27.0f));
  }
}

// Its threads are not there: a step says so, and the destructor waits for none.
TEST(a_forked_child_can_only_drop_the_group) {
  Options options;
  options.threads = 1;
  options.ranks = 2;
  const ModelConfig config = config_for_ranks();
  test::RandomSource source(config);
  std::unique_ptr<Backend> backend = make_backend("cpu", "", options);
  backend->load(config, source);
  CHECK(test::in_child([&] {
          const std::string told = message([&] { backend->alloc_kv(pages); });
          backend.reset();
          return told.find("it belongs to the process that loaded it") != std::string::npos ? 0 : 1;
        }) == 0);
  backend->alloc_kv(pages);
  std::vector<float> logits = run(*backend, text(8, 1), 8);
  CHECK(!logits.empty());
}

TEST(sums_are_the_same_on_all_ranks) {
  constexpr int ranks = 3, count = 1001;
  const auto communicators = thread_communicators(ranks);
  std::vector<std::vector<float>> values(ranks, std::vector<float>(count));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      for (int turn = 0; turn < 50; ++turn) {
        auto& mine = values[static_cast<size_t>(r)];
        for (int i = 0; i < count; ++i) {
          mine[static_cast<size_t>(i)] = static_cast<float>(r + i + turn);
        }
        communicators[static_cast<size_t>(r)]->all_reduce(mine.data(), count, nullptr);
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const auto& mine : values) {
    for (int i = 0; i < count; ++i) {
      CHECK(mine[static_cast<size_t>(i)] == static_cast<float>(3 * (i + 49) + 3));
    }
  }
}

TEST(who_waits_for_a_rank_that_failed_is_told) {
  const auto communicators = thread_communicators(2);
  std::string told;
  std::thread waits([&] {
    float value = 1.0f;
    told = message([&] { communicators[0]->all_reduce(&value, 1, nullptr); });
  });
  communicators[1]->abort();
  waits.join();
  CHECK(told.find("another rank has failed") != std::string::npos);
  communicators[1]->restart();
  std::vector<float> values = {1.0f, 2.0f};
  std::thread other([&] { communicators[0]->all_reduce(values.data(), 1, nullptr); });
  communicators[1]->all_reduce(values.data() + 1, 1, nullptr);
  other.join();
  CHECK(values == std::vector<float>(2, 3.0f));
}
