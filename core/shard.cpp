#include "core/shard.h"

#include <cstring>

#include "core/check.h"

namespace gptoss {

namespace {

enum class Split { none, rows, columns, first_rank };

bool ends_with(const std::string& text, const char* end) {
  const size_t length = std::strlen(end);
  return text.size() >= length && text.compare(text.size() - length, length, end) == 0;
}

Split split_of(const std::string& full_name) {
  constexpr const char* q8_0 = ".q8_0";  // its rows and blocks are split as the matrix's
  const std::string name = ends_with(full_name, q8_0)
                               ? full_name.substr(0, full_name.size() - std::strlen(q8_0))
                               : full_name;
  for (const char* part : {"attn.q", "attn.k", "attn.v"}) {
    if (ends_with(name, (std::string(part) + ".weight").c_str()) ||
        ends_with(name, (std::string(part) + ".bias").c_str())) {
      return Split::rows;
    }
  }
  if (ends_with(name, "attn.sinks")) {
    return Split::rows;
  }
  if (ends_with(name, "attn.out.weight")) {
    return Split::columns;
  }
  if (ends_with(name, "attn.out.bias")) {
    return Split::first_rank;
  }
  for (const char* part : {"mlp1_", "mlp2_"}) {
    if (name.find(std::string(".mlp.") + part) != std::string::npos) {
      return Split::rows;  // of experts
    }
  }
  return Split::none;
}

size_t size_of(DType dtype) { return dtype == DType::bf16 ? sizeof(bf16) : 1; }

}  // namespace

ModelConfig shard_config(const ModelConfig& whole, const Shard& shard) {
  GPTOSS_CHECK(shard.ranks >= 1 && shard.rank >= 0 && shard.rank < shard.ranks,
               "tensor parallel: rank {} of {}", shard.rank, shard.ranks);
  GPTOSS_CHECK(
      whole.num_key_value_heads % shard.ranks == 0 &&
          whole.num_attention_heads % shard.ranks == 0 && whole.num_experts % shard.ranks == 0,
      "tensor parallel: expected a number of ranks that divides {} heads, {} KV heads and "
      "{} experts, found {}",
      whole.num_attention_heads, whole.num_key_value_heads, whole.num_experts, shard.ranks);
  ModelConfig config = whole;
  config.num_attention_heads /= shard.ranks;
  config.num_key_value_heads /= shard.ranks;
  return config;
}

ShardedSource::ShardedSource(WeightSource& source, const Shard& shard, bool keep)
    : source_(source), shard_(shard), keep_(keep) {
  GPTOSS_CHECK(!source.panels(),
               "tensor parallel: expected published weights, found a packed model");
}

Tensor ShardedSource::tensor(const std::string& name) {
  Tensor tensor = source_.tensor(name);
  const Split split = split_of(name);
  if (split == Split::none || shard_.ranks == 1) {
    return tensor;
  }
  const size_t dimension = split == Split::columns ? 1 : 0;
  GPTOSS_CHECK(tensor.shape.size() > dimension && tensor.data != nullptr &&
                   (split == Split::first_rank || tensor.shape[dimension] % shard_.ranks == 0),
               "tensor {}: expected a shape that {} ranks divide, found {}", name, shard_.ranks,
               shape_name(tensor.shape));
  int64_t count = 1;
  for (const int64_t extent : tensor.shape) {
    count *= extent;
  }
  const size_t bytes = static_cast<size_t>(count) * size_of(tensor.dtype);
  const auto* data = static_cast<const uint8_t*>(tensor.data);
  if (split == Split::first_rank) {
    if (shard_.rank > 0) {
      std::vector<uint8_t>& copy = copies_[name];
      copy.assign(bytes, 0);
      tensor.data = copy.data();
    }
    return tensor;
  }
  const auto ranks = static_cast<size_t>(shard_.ranks), rank = static_cast<size_t>(shard_.rank);
  tensor.shape[dimension] /= shard_.ranks;
  if (split == Split::rows) {
    tensor.data = data + bytes / ranks * rank;
    return tensor;
  }
  const auto rows = static_cast<size_t>(tensor.shape[0]);
  const size_t row = bytes / rows, part = row / ranks;
  std::vector<uint8_t>& copy = copies_[name];
  copy.resize(rows * part);
  for (size_t r = 0; r < rows; ++r) {
    std::memcpy(copy.data() + r * part, data + r * row + rank * part, part);
  }
  tensor.data = copy.data();
  return tensor;
}

void ShardedSource::release(const std::string& name) {
  copies_.erase(name);
  if (!keep_) {
    source_.release(name);
  }
}

}  // namespace gptoss
