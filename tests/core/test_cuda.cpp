// The CUDA backend, emulated, beside the CPU's: whole steps of a small random model.
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/registry.h"
#include "cuda/cuda_backend.h"
#include "cuda/model.h"
#include "cuda/runtime.h"
#include "tests/core/random_model.h"
#include "tests/core/run_model.h"
#include "tests/core/test.h"

using namespace gptoss;
using test::distance, test::pages, test::run, test::Sequence, test::small_config, test::step,
    test::text;

namespace {

struct Model {
  test::RandomSource source;
  std::unique_ptr<Backend> backend;

  Model(std::unique_ptr<Backend> of, const ModelConfig& config)
      : source(config), backend(std::move(of)) {
    backend->load(config, source);
    backend->alloc_kv(pages);
  }
};

Model on_cpu(Activation activation, const ModelConfig& config = small_config()) {
  Options options;
  options.activation = activation;
  options.threads = 1;
  return {make_backend("cpu", "", options), config};
}

Model on_cuda(const ModelConfig& config = small_config()) {
  return {cuda::make_backend(Options{}), config};
}

}  // namespace

// Every token goes to all experts here: in a random model a rounding exchanges experts, and then
// nothing near is left to compare.
TEST(as_near_to_float32_as_the_cpu_in_bf16) {
  ModelConfig small = small_config();
  small.num_experts = small.experts_per_token = 3;
  ModelConfig larger = small;
  larger.hidden_size = 96;
  larger.head_dim = 64;
  larger.num_attention_heads = 8;
  larger.num_key_value_heads = 1;
  ModelConfig odd = small;  // heads that the kernels on tensor cores do not have
  odd.head_dim = 24;
  for (const ModelConfig& config : {small, larger, odd}) {
    const std::vector<int32_t> tokens = text(70, 1);
    const std::vector<float> exact = run(*on_cpu(Activation::f32, config).backend, tokens, 70);
    const std::vector<float> cpu = run(*on_cpu(Activation::bf16, config).backend, tokens, 70);
    for (const int major : {8, 9}) {
      cuda::emulated_device().major = major;
      const Model model = on_cuda(config);
      for (const int chunk : {70, 1, 3, 17}) {
        const std::vector<float> found = run(*model.backend, tokens, chunk);
        CHECK(distance(found, exact) <= 1.5 * distance(cpu, exact));
      }
    }
  }
}

TEST(several_sequences_in_a_step) {
  const Model model = on_cuda();
  const std::vector<float> alone = run(*model.backend, text(60, 2), 20);
  Sequence a{text(60, 2), 0}, b{text(40, 3), 1}, c{text(20, 4), 2};
  std::vector<float> found, others;
  step(*model.backend, {&b, &a}, {33, 20}, {&others, &found});
  step(*model.backend, {&a, &c, &b}, {20, 20, 7}, {&found, &others, &others});
  step(*model.backend, {&a}, {20}, {&found});
  CHECK(distance(found, alone) < 0.02);
}

// The published models on one GPU: attention, embedding and unembedding in bf16, experts at 17
// bytes for 32 weights, and biases.
TEST(published_models_fit_where_they_should) {
  ModelConfig c;
  c.num_hidden_layers = 24;
  c.num_experts = 32;
  c.vocab_size = 201088;
  c.hidden_size = c.intermediate_size = 2880;
  c.head_dim = 64;
  c.num_attention_heads = 64;
  c.num_key_value_heads = 8;
  const auto gigabytes = [](const ModelConfig& config, int experts) {
    return static_cast<double>(cuda::model_bytes(config, experts)) * 1e-9;
  };
  CHECK(std::abs(gigabytes(c, 32) - 13.76) < 0.01);
  c.num_hidden_layers = 36;
  c.num_experts = 128;
  CHECK(std::abs(gigabytes(c, 128) - 65.25) < 0.01);  // one GPU of 80 GB
  const double half = gigabytes(shard_config(c, {0, 2}), 64);
  CHECK(half > 33.0 && half < 35.0);
}

TEST(memory_that_runs_out_leaves_it_usable) {
  const std::vector<int32_t> tokens = text(40, 3);
  const std::vector<float> wanted = run(*on_cuda().backend, tokens, 8);
  const Model model = on_cuda();
  const auto fails = [&](size_t largest) {
    cuda::emulated_largest_allocation() = largest;
    try {
      run(*model.backend, tokens, 40);
    } catch (const Error& error) {
      return std::string(error.what()).find("GPU memory: needed") != std::string::npos;
    }
    return false;
  };
  // Of a step's inputs, of its arrays; before the first step and after one.
  for (int turn = 0; turn < 2; ++turn) {
    for (const size_t largest : {size_t{16}, size_t{1} << 14}) {
      CHECK(fails(largest));
    }
    cuda::emulated_largest_allocation() = SIZE_MAX;
    CHECK(distance(run(*model.backend, tokens, 8), wanted) < 1e-6);
  }
}

TEST(a_model_that_does_not_fit_says_what_would) {
  cuda::emulated_largest_allocation() = 256;
  std::string message;
  try {
    on_cuda();
  } catch (const Error& error) {
    message = error.what();
  }
  cuda::emulated_largest_allocation() = SIZE_MAX;
  CHECK(message.find("of its 3 layers would fit") != std::string::npos);
}

TEST(what_it_cannot_do_is_named) {
  const auto message = [](const Options& options) {
    try {
      cuda::make_backend(options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  Options options;
  options.activation = Activation::f32;
  CHECK(message(options).find("expected activation bf16") != std::string::npos);
  options = Options{};
  options.weights = DenseWeights::q8;
  CHECK(message(options).find("expected published weights") != std::string::npos);
  options = Options{};
  options.kv = KvFormat::int8;
  CHECK(message(options).find("expected a bf16 cache") != std::string::npos);
}
