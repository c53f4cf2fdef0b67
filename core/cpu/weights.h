// A model's weights as the CPU backend holds them: matrices in panels, small vectors as published.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "core/config.h"
#include "core/cpu/panels.h"
#include "core/cpu/threads.h"
#include "core/weights.h"

namespace gptoss::cpu {

// Memory for panels, in pieces that live as long as this object. Large pieces ask for huge pages:
// a first touch costs a fault per page, and later accesses an address translation per page.
class PanelMemory {
public:
  uint8_t* allocate(int64_t bytes);
  int64_t bytes() const { return bytes_; }

private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  std::vector<std::unique_ptr<uint8_t, Free>> pieces_;
  int64_t bytes_ = 0;
};

// One matrix per expert.
struct ExpertPanels {
  WeightFormat format = WeightFormat::mxfp4;
  int64_t rows = 0, cols = 0;
  const uint8_t* data = nullptr;  // (experts, panel_count(rows), panel_bytes(format, cols))
  const bf16* bias = nullptr;     // (experts, rows)

  Panels expert(int64_t e) const {
    const int64_t bytes = panel_count(rows) * panel_bytes(format, cols);
    return {format, rows, cols, data + e * bytes, bias + e * rows};
  }
};

struct LayerPanels {
  const bf16* attn_norm = nullptr;  // (hidden)
  Panels q, k, v;                   // (heads · head_dim or kv_heads · head_dim, hidden)
  const bf16* sinks = nullptr;      // (heads)
  Panels out;                       // (hidden, heads · head_dim)
  const bf16* mlp_norm = nullptr;   // (hidden)
  Panels gate;                      // (experts, hidden), always bf16
  ExpertPanels mlp1;                // (experts, 2 · intermediate, hidden): even glu, odd linear
  ExpertPanels mlp2;                // (experts, hidden, intermediate)
};

struct ModelPanels {
  const bf16* embedding = nullptr;  // (vocab, hidden), row by row: tokens look rows up
  const bf16* norm = nullptr;       // (hidden)
  Panels unembedding;               // (vocab, hidden)
  std::vector<LayerPanels> layers;
  PanelMemory memory;  // what was packed here; empty where the source gave panels
};

// Reads and checks every tensor. Published ones are packed layer by layer by `threads`,
// and each layer's are released before the next is read; panels are used where they lie.
// Throws Error naming the tensor, what was expected and what was found.
// experts: how many this rank has.
ModelPanels load_panels(const ModelConfig& config, int experts, WeightSource& source,
                        DenseWeights dense, ThreadPool& threads);

}  // namespace gptoss::cpu
