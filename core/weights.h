// Canonical tensor names → typed views. Every shape and dtype is checked against ModelConfig before
// a byte is read. Names and layout are those of OpenAI's original checkpoint, except that qkv comes
// as its three row blocks (docs/adr/0003).
#pragma once

#include <string>
#include <vector>

#include "config.h"
#include "dtype.h"
#include "tensor.h"

namespace gptoss {

// Where tensors come from: a mapped checkpoint, a synthetic model, a trainer's arrays. The views it
// returns stay valid until release_layer(layer) (or for good, if the backend never releases).
class WeightSource {
public:
  virtual ~WeightSource() = default;
  virtual Tensor tensor(const std::string& name) = 0;
  // The backend has repacked the layer and will not look at its tensors again.
  virtual void release_layer(int layer) = 0;
  // "mxfp4" experts come as .blocks and .scales; otherwise as one bf16 tensor.
  virtual bool experts_are_mxfp4() const = 0;
};

struct Linear {
  const bf16* weight = nullptr;  // (rows, cols)
  const bf16* bias = nullptr;    // (rows)
};

// One matrix per expert, either packed (blocks and scales set) or bf16 (dense set).
struct ExpertLinear {
  const uint8_t* blocks = nullptr;  // (experts, rows, cols / 32, 16)
  const uint8_t* scales = nullptr;  // (experts, rows, cols / 32)
  const bf16* dense = nullptr;      // (experts, rows, cols)
  const bf16* bias = nullptr;       // (experts, rows)
};

struct LayerWeights {
  const bf16* attn_norm = nullptr;  // (hidden)
  Linear q;                         // (heads * head_dim, hidden)
  Linear k, v;                      // (kv_heads * head_dim, hidden)
  const bf16* sinks = nullptr;      // (heads)
  Linear out;                       // (hidden, heads * head_dim)
  const bf16* mlp_norm = nullptr;   // (hidden)
  Linear gate;                      // (experts, hidden)
  ExpertLinear mlp1;  // (experts, 2 * intermediate, hidden): even rows glu, odd linear
  ExpertLinear mlp2;  // (experts, hidden, intermediate)
};

struct Weights {
  const bf16* embedding = nullptr;    // (vocab, hidden)
  const bf16* norm = nullptr;         // (hidden)
  const bf16* unembedding = nullptr;  // (vocab, hidden)
  std::vector<LayerWeights> layers;
};

// The tensors outside the layers; `layers` is left empty.
Weights read_outer_weights(const ModelConfig& config, WeightSource& source);

LayerWeights read_layer_weights(const ModelConfig& config, WeightSource& source, int layer);

}  // namespace gptoss
