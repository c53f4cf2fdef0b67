// Which part of a model a rank of a tensor-parallel group holds: some of the attention heads with
// their KV heads (Shoeybi et al. 2019, "Megatron-LM") and some of the experts whole. Embedding,
// norms, gate and unembedding are every rank's. A layer's two sums over ranks follow: of
// attention's output and of the experts'.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/weights.h"

namespace gptoss {

struct Shard {
  int rank = 0, ranks = 1;

  int experts(const ModelConfig& config) const { return config.num_experts / ranks; }
  int first_expert(const ModelConfig& config) const { return rank * experts(config); }
};

// The configuration of one rank: its own heads; num_experts stays that of the model. Throws Error
// where heads or experts do not divide.
ModelConfig shard_config(const ModelConfig& whole, const Shard& shard);

// A rank's tensors out of those of the whole model. Rows and experts are views of what the source
// gives; columns are copied. The bias of attention's output, which every rank would add, is the
// first rank's alone.
class ShardedSource final : public WeightSource {
public:
  // keep: other ranks still read from this source, nothing is released yet.
  ShardedSource(WeightSource& source, const Shard& shard, bool keep);

  Tensor tensor(const std::string& name) override;
  void release(const std::string& name) override;
  bool experts_are_mxfp4() const override { return source_.experts_are_mxfp4(); }
  std::optional<DenseWeights> panels() const override { return source_.panels(); }
  bool is_q8_0(const std::string& name) const override { return source_.is_q8_0(name); }

private:
  WeightSource& source_;
  Shard shard_;
  bool keep_;
  std::map<std::string, std::vector<uint8_t>> copies_;
};

}  // namespace gptoss
