// A model's weights on the device.
#pragma once

#include <vector>

#include "core/config.h"
#include "core/weights.h"
#include "cuda/runtime.h"

namespace gptoss::cuda {

struct Linear {
  DeviceMemory weight, bias;
  int rows = 0, columns = 0;
};

struct Experts {
  DeviceMemory codes, scales, bias;  // layout.h
  int rows = 0, columns = 0;
};

struct Layer {
  DeviceMemory attn_norm, sinks, mlp_norm;
  Linear qkv, out, gate;
  Experts gate_up, down;
};

struct Model {
  DeviceMemory embedding, norm;
  Linear unembedding;
  std::vector<Layer> layers;
};

// Reads, uploads and packs tensor by tensor: while the device copies and packs one part, the next
// is read. Throws Error when a tensor is wrong or memory runs out; the message then says how much
// the model needs in all and how much there was.
// experts: how many this rank has.
Model load_model(const ModelConfig& config, int experts, WeightSource& source,
                 const Stream& stream);

// What a model takes on the device, in bytes.
int64_t model_bytes(const ModelConfig& config, int experts);

}  // namespace gptoss::cuda
