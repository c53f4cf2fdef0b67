// A backend in a shared library, as test_backend.cpp loads it. GPTOSS_TEST_ABI and
// GPTOSS_TEST_DEVICE say which interface it claims and whether its device is there.
#include <cstdio>

#include "core/backend.h"

namespace {

class PaperBackend final : public gptoss::Backend {
public:
  void load(const gptoss::ModelConfig&, gptoss::WeightSource&) override {}
  int64_t page_bytes() const override { return 4321; }
  void alloc_kv(int64_t) override {}
  void step(const gptoss::Batch&, const gptoss::Output&) override {}
  std::vector<std::pair<std::string, std::string>> info() const override { return {}; }
};

bool available(char* reason, size_t size) {
  std::snprintf(reason, size, GPTOSS_TEST_DEVICE ? "a device of paper" : "no device here");
  return GPTOSS_TEST_DEVICE;
}

gptoss::Backend* create(const gptoss::Options&) { return new PaperBackend; }

void communicators(int, std::vector<std::unique_ptr<gptoss::Communicator>>&) {}

}  // namespace

extern "C" __attribute__((visibility("default")))
const gptoss::BackendPlugin gptoss_backend_plugin = {GPTOSS_TEST_ABI, available, create,
                                                     communicators};
