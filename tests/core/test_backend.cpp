// Whole steps of a small random model through the backend interface.
#include "core/backend.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "core/cpu/kernels/select.h"
#include "core/cpu/machine.h"
#include "core/registry.h"
#include "tests/core/random_model.h"
#include "tests/core/run_model.h"
#include "tests/core/test.h"

using namespace gptoss;
using test::pages, test::run, test::Sequence, test::small_config, test::step, test::text;

namespace {

struct Model {
  test::RandomSource source;
  std::unique_ptr<Backend> backend;

  explicit Model(Activation activation = Activation::f32, int threads = 2,
                 const ModelConfig& config = small_config())
      : source(config) {
    Options options;
    options.activation = activation;
    options.threads = threads;
    backend = make_backend("cpu", "", options);
    backend->load(config, source);
    backend->alloc_kv(pages);
  }
};

}  // namespace

TEST(chunks_change_nothing) {
  for (const cpu::Isa isa : cpu::testable_isas()) {
    setenv("GPTOSS_CPU_ISA", cpu::isa_name(isa), 1);
    const Model model;
    const std::vector<float> whole = run(*model.backend, text(70, 1), 70);
    CHECK(std::all_of(whole.begin(), whole.end(), [](float x) { return std::isfinite(x); }));
    for (const int chunk : {1, 5, 16, 17}) {
      CHECK(run(*model.backend, text(70, 1), chunk) == whole);
    }
  }
  unsetenv("GPTOSS_CPU_ISA");
}

TEST(neighbours_and_threads_change_nothing) {
  const Model model, single(Activation::f32, 1);
  const std::vector<float> wanted = run(*single.backend, text(60, 2), 60);
  Sequence a{text(60, 2), 0}, b{text(40, 3), 1}, c{text(20, 4), 2};
  std::vector<float> a_logits, others;
  step(*model.backend, {&b, &a}, {33, 10}, {&others, &a_logits});
  step(*model.backend, {&a, &c, &b}, {1, 20, 7}, {&a_logits, &others, &others});
  step(*model.backend, {&a}, {49}, {&a_logits});
  CHECK(a_logits == wanted);
}

TEST(bf16_is_near_float32) {
  ModelConfig config = small_config();
  config.experts_per_token = config.num_experts;  // a rounding cannot flip the choice of experts
  const Model exact(Activation::f32, 2, config), rounded(Activation::bf16, 2, config);
  const std::vector<float> x = run(*exact.backend, text(5, 6), 5);
  const std::vector<float> y = run(*rounded.backend, text(5, 6), 5);
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - y[i]) * (x[i] - y[i]);
    size += x[i] * x[i];
  }
  CHECK(difference > 0);
  CHECK_NEAR(std::sqrt(difference / size), 0, 0.05);
}

TEST(a_refused_step_harms_nothing) {
  const Model model;
  const std::vector<float> before = run(*model.backend, text(20, 5), 20);
  std::vector<int32_t> wrong = text(20, 5);
  wrong[19] = 50;
  CHECK_THROWS(run(*model.backend, wrong, 20), "token id must lie in 0..49, found 50");
  CHECK(run(*model.backend, text(20, 5), 20) == before);
}

TEST(kv_pages) {
  const Model model;
  // Two of three layers slide: a page holds two layers' K and V, 16 tokens, 2 heads of 16, float32.
  CHECK(model.backend->page_bytes() == 2 * 2 * 16 * 2 * 16 * 4);
  CHECK(model.backend->plan_kv(model.backend->page_bytes() * 3 + 1) == 3);
  CHECK(model.backend->plan_kv(-1) == 0);
  CHECK_THROWS(model.backend->alloc_kv(4), "already allocated (40 pages)");
  const auto empty = make_backend("cpu", "", {});
  CHECK_THROWS(empty->alloc_kv(4), "no model is loaded");
  CHECK_THROWS(empty->step({}, {}), "no model is loaded");
}

TEST(devices) {
  CHECK_THROWS(make_backend("tpu", "", {}), "expected cpu or cuda, found tpu");
  CHECK_THROWS(make_backend("cuda", "/nowhere", {}), "this installation has no cuda backend");
  CHECK(make_backend("cpu", "/nowhere", {}) != nullptr);
  Options options;
  options.threads = -1;
  CHECK_THROWS(make_backend("cpu", "", options), "threads must lie in");
  const auto list = list_backends("/nowhere");
  CHECK(list.size() == 2 && list[0].name == "cuda" && !list[0].available && list[1].available);
}

TEST(plugins) {
  const auto list = list_backends(GPTOSS_TEST_PLUGINS "/good");
  CHECK(list[0].available && list[0].reason == "a device of paper");
  CHECK(make_backend("cuda", GPTOSS_TEST_PLUGINS "/good", {})->page_bytes() == 4321);
  CHECK_THROWS(make_backend("cuda", GPTOSS_TEST_PLUGINS "/old", {}), "built for interface 0");
  CHECK_THROWS(make_backend("cuda", GPTOSS_TEST_PLUGINS "/foreign", {}),
               "of another C++ standard library");
  CHECK_THROWS(make_backend("cuda", GPTOSS_TEST_PLUGINS "/absent", {}), "no device here");
}

TEST(isa_names) {
  setenv("GPTOSS_CPU_ISA", "sse9", 1);
  CHECK_THROWS(make_backend("cpu", "", {}), "found 'sse9'");
  CHECK_THROWS(cpu::select_isa(), "expected one of generic");
  CHECK(cpu::describe_isa().find("sse9") != std::string::npos);
  unsetenv("GPTOSS_CPU_ISA");
  CHECK(cpu::usable_threads() >= 1);
}

TEST(a_forced_isa_is_used) {
  for (const cpu::Isa isa : cpu::testable_isas()) {
    setenv("GPTOSS_CPU_ISA", cpu::isa_name(isa), 1);
    CHECK(cpu::select_isa() == isa);
    CHECK(cpu::kernels_for(isa).isa == isa);
    CHECK(cpu::describe_isa() == std::string(cpu::isa_name(isa)) + " kernels (GPTOSS_CPU_ISA)");
  }
  unsetenv("GPTOSS_CPU_ISA");
}

TEST(an_isa_that_this_cpu_lacks_is_refused) {
  const std::vector<cpu::Isa> testable = cpu::testable_isas();
  for (const cpu::Isa isa : {cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512_vnni,
                             cpu::Isa::avx512_bf16, cpu::Isa::amx, cpu::Isa::amx_emulated}) {
    if (std::find(testable.begin(), testable.end(), isa) == testable.end()) {
      setenv("GPTOSS_CPU_ISA", cpu::isa_name(isa), 1);
      CHECK_THROWS(cpu::select_isa(), std::string("found '") + cpu::isa_name(isa) + "'");
    }
  }
  unsetenv("GPTOSS_CPU_ISA");
}

// The last that is usable, or the one before it where bf16 dot products are slow; emulated tiles
// neither by default nor among what an error message offers.
TEST(default_isa) {
  const std::vector<cpu::Isa> usable = cpu::usable_isas();
  CHECK(usable.front() == cpu::Isa::generic);
  CHECK(std::find(usable.begin(), usable.end(), cpu::Isa::amx_emulated) == usable.end());
  const bool slow = usable.back() == cpu::Isa::avx512_bf16 &&
                    !cpu::kernels_for(cpu::Isa::avx512_bf16).bf16_is_fast();
  const cpu::Isa wanted = slow ? cpu::Isa::avx512_vnni : usable.back();
  for (const char* unset : {"", static_cast<const char*>(nullptr)}) {
    unset != nullptr ? setenv("GPTOSS_CPU_ISA", unset, 1) : unsetenv("GPTOSS_CPU_ISA");
    CHECK(cpu::select_isa() == wanted);
    CHECK(cpu::describe_isa() == std::string(cpu::isa_name(wanted)) + " kernels");
  }
}
