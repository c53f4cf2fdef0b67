#include "weights.h"

#include "check.h"

namespace gptoss {

namespace {

const void* read(WeightSource& source, const std::string& name, DType dtype,
                 const std::vector<int64_t>& shape) {
  const Tensor tensor = source.tensor(name);
  GPTOSS_CHECK(tensor.dtype == dtype, "tensor {}: expected dtype {}, found {}", name,
               dtype_name(dtype), dtype_name(tensor.dtype));
  GPTOSS_CHECK(tensor.shape == shape, "tensor {}: expected shape {}, found {}", name,
               shape_name(shape), shape_name(tensor.shape));
  GPTOSS_CHECK(tensor.data != nullptr, "tensor {}: no data", name);
  const size_t alignment = dtype == DType::bf16 ? alignof(bf16) : 1;
  GPTOSS_CHECK(reinterpret_cast<uintptr_t>(tensor.data) % alignment == 0,
               "tensor {}: address is not a multiple of {} bytes", name, alignment);
  return tensor.data;
}

const bf16* read_bf16(WeightSource& source, const std::string& name,
                      const std::vector<int64_t>& shape) {
  return static_cast<const bf16*>(read(source, name, DType::bf16, shape));
}

const uint8_t* read_u8(WeightSource& source, const std::string& name,
                       const std::vector<int64_t>& shape) {
  return static_cast<const uint8_t*>(read(source, name, DType::u8, shape));
}

Linear read_linear(WeightSource& source, const std::string& name, int64_t rows, int64_t cols) {
  return {read_bf16(source, name + ".weight", {rows, cols}),
          read_bf16(source, name + ".bias", {rows})};
}

ExpertLinear read_experts(WeightSource& source, const std::string& name, int64_t experts,
                          int64_t rows, int64_t cols) {
  ExpertLinear matrix;
  if (source.experts_are_mxfp4()) {
    const int64_t blocks = cols / mx_block;
    matrix.blocks =
        read_u8(source, name + "_weight.blocks", {experts, rows, blocks, mx_block_bytes});
    matrix.scales = read_u8(source, name + "_weight.scales", {experts, rows, blocks});
  } else {
    matrix.dense = read_bf16(source, name + "_weight", {experts, rows, cols});
  }
  matrix.bias = read_bf16(source, name + "_bias", {experts, rows});
  return matrix;
}

}  // namespace

Weights read_outer_weights(const ModelConfig& c, WeightSource& source) {
  Weights weights;
  weights.embedding = read_bf16(source, "embedding.weight", {c.vocab_size, c.hidden_size});
  weights.norm = read_bf16(source, "norm.scale", {c.hidden_size});
  weights.unembedding = read_bf16(source, "unembedding.weight", {c.vocab_size, c.hidden_size});
  return weights;
}

LayerWeights read_layer_weights(const ModelConfig& c, WeightSource& source, int layer) {
  const std::string attn = "block." + std::to_string(layer) + ".attn.";
  const std::string mlp = "block." + std::to_string(layer) + ".mlp.";
  LayerWeights w;
  w.attn_norm = read_bf16(source, attn + "norm.scale", {c.hidden_size});
  w.q = read_linear(source, attn + "q", c.query_size(), c.hidden_size);
  w.k = read_linear(source, attn + "k", c.kv_size(), c.hidden_size);
  w.v = read_linear(source, attn + "v", c.kv_size(), c.hidden_size);
  w.sinks = read_bf16(source, attn + "sinks", {c.num_attention_heads});
  w.out = read_linear(source, attn + "out", c.hidden_size, c.query_size());
  w.mlp_norm = read_bf16(source, mlp + "norm.scale", {c.hidden_size});
  w.gate = read_linear(source, mlp + "gate", c.num_experts, c.hidden_size);
  w.mlp1 =
      read_experts(source, mlp + "mlp1", c.num_experts, 2 * c.intermediate_size, c.hidden_size);
  w.mlp2 = read_experts(source, mlp + "mlp2", c.num_experts, c.hidden_size, c.intermediate_size);
  return w;
}

}  // namespace gptoss
