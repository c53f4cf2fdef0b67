#include "weights.h"

#include "random_model.h"
#include "test.h"

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
  void release_layer(int) override {}
  bool experts_are_mxfp4() const override { return true; }

private:
  test::RandomSource base_;
  std::string name_;
  void (*change_)(Tensor&);
};

void read_with(const std::string& name, void (*change)(Tensor&)) {
  Changed source(name, change);
  read_outer_weights(small_config(), source);
  read_layer_weights(small_config(), source, 1);
}

}  // namespace

TEST(views_point_into_the_source) {
  test::RandomSource source(small_config());
  const Weights outer = read_outer_weights(small_config(), source);
  CHECK(outer.embedding == source.tensor("embedding.weight").data);
  const LayerWeights layer = read_layer_weights(small_config(), source, 2);
  CHECK(layer.k.bias == source.tensor("block.2.attn.k.bias").data);
  CHECK(layer.mlp2.scales == source.tensor("block.2.mlp.mlp2_weight.scales").data);
  CHECK(layer.mlp1.dense == nullptr);
}

TEST(wrong_dtype) {
  CHECK_THROWS(read_with("norm.scale", [](Tensor& t) { t.dtype = DType::u8; }),
               "tensor norm.scale: expected dtype BF16, found U8");
  CHECK_THROWS(
      read_with("block.1.mlp.mlp1_weight.blocks", [](Tensor& t) { t.dtype = DType::bf16; }),
      "tensor block.1.mlp.mlp1_weight.blocks: expected dtype U8, found BF16");
}

TEST(wrong_shape) {
  CHECK_THROWS(read_with("block.1.attn.out.weight", [](Tensor& t) { t.shape = {64, 63}; }),
               "tensor block.1.attn.out.weight: expected shape [64, 64], found [64, 63]");
  CHECK_THROWS(read_with("block.1.attn.sinks", [](Tensor& t) { t.shape = {}; }),
               "expected shape [4], found []");
}

TEST(no_data_and_misaligned_data) {
  CHECK_THROWS(read_with("embedding.weight", [](Tensor& t) { t.data = nullptr; }), "no data");
  CHECK_THROWS(read_with("unembedding.weight",
                         [](Tensor& t) { t.data = static_cast<const uint8_t*>(t.data) + 1; }),
               "tensor unembedding.weight: address is not a multiple of 2");
}
