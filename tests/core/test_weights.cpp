#include "core/weights.h"

#include <map>

#include "core/cpu/weights.h"
#include "tests/core/random_model.h"
#include "tests/core/test.h"

using namespace gptoss;
using test::small_config;

namespace {

// A source whose tensor `name` is changed on its way.
class Changed final : public WeightSource {
public:
  Changed(const std::string& name, void (*change)(Tensor&))
      : base_(small_config()), name_(name), change_(change) {}
  Tensor tensor(const std::string& name) override {
    Tensor tensor = base_.tensor(name);
    if (name == name_) {
      change_(tensor);
    }
    return tensor;
  }
  void release(const std::string&) override {}
  bool experts_are_mxfp4() const override { return true; }

private:
  test::RandomSource base_;
  std::string name_;
  void (*change_)(Tensor&);
};

void load_with(const std::string& name, void (*change)(Tensor&)) {
  Changed source(name, change);
  cpu::ThreadPool alone(1);
  cpu::load_panels(small_config(), small_config().num_experts, source, DenseWeights::published,
                   alone);
}

// Says where each tensor went; optionally already packed.
class Watched final : public WeightSource {
public:
  Tensor tensor(const std::string& name) override {
    ++held[name];
    return base_.tensor(name);
  }
  void release(const std::string& name) override { --held[name]; }
  bool experts_are_mxfp4() const override { return true; }

  std::map<std::string, int> held;

private:
  test::RandomSource base_{small_config()};
};

}  // namespace

TEST(everything_but_the_embedding_is_released) {
  Watched source;
  cpu::ThreadPool alone(1);
  const cpu::ModelPanels model = cpu::load_panels(small_config(), small_config().num_experts,
                                                  source, DenseWeights::published, alone);
  CHECK(model.layers.size() == 3);
  CHECK(model.memory.bytes() > 0);
  for (const auto& [name, count] : source.held) {
    CHECK(count == (name == "embedding.weight" ? 1 : 0));
  }
}

TEST(formats) {
  Watched source;
  cpu::ThreadPool threads(2);
  const cpu::ModelPanels model = cpu::load_panels(small_config(), small_config().num_experts,
                                                  source, DenseWeights::q8, threads);
  CHECK(model.unembedding.format == cpu::WeightFormat::q8);
  CHECK(model.layers[1].k.format == cpu::WeightFormat::q8);
  CHECK(model.layers[1].gate.format == cpu::WeightFormat::bf16);
  CHECK(model.layers[1].mlp1.format == cpu::WeightFormat::mxfp4);
  CHECK(model.layers[1].mlp1.rows == 64);
  CHECK(model.layers[1].mlp2.cols == 32);
}

TEST(wrong_dtype) {
  CHECK_THROWS(load_with("norm.scale", [](Tensor& t) { t.dtype = DType::u8; }),
               "tensor norm.scale: expected dtype BF16, found U8");
  CHECK_THROWS(
      load_with("block.1.mlp.mlp1_weight.blocks", [](Tensor& t) { t.dtype = DType::bf16; }),
      "tensor block.1.mlp.mlp1_weight.blocks: expected dtype U8, found BF16");
}

TEST(wrong_shape) {
  CHECK_THROWS(load_with("block.1.attn.out.weight", [](Tensor& t) { t.shape = {64, 63}; }),
               "tensor block.1.attn.out.weight: expected shape [64, 64], found [64, 63]");
  CHECK_THROWS(load_with("block.1.attn.sinks", [](Tensor& t) { t.shape = {}; }),
               "expected shape [4], found []");
}

TEST(no_data_and_misaligned_data) {
  CHECK_THROWS(load_with("embedding.weight", [](Tensor& t) { t.data = nullptr; }), "no data");
  CHECK_THROWS(load_with("unembedding.weight",
                         [](Tensor& t) { t.data = static_cast<const uint8_t*>(t.data) + 1; }),
               "tensor unembedding.weight: address is not a multiple of 2");
}
