// The parts of a layer, spread over threads: what backend.cpp calls. Kernels know one thread, these
// know all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "batch.h"
#include "config.h"
#include "cpu/compute.h"
#include "cpu/model_weights.h"

namespace gptoss::cpu {

// KV pages: one allocation; page p holds, for each layer of its group, K then V of every KV head,
// (kv_heads, page_size, head_dim) each.
class KvPool {
public:
  KvPool(const ModelConfig& config, bool f32);
  int64_t page_bytes() const;
  int64_t pages() const { return pages_; }
  void alloc(int64_t pages);
  bool is_f32() const { return f32_; }
  int64_t page_elements() const { return page_elements_; }
  // Address of element 0 of K (or V) of this layer and KV head in page 0.
  void* base(int layer, int kv_head, bool value) const;
  // Stores one head's K or V of one token.
  void store(int layer, int kv_head, bool value, int64_t slot, const float* from) const;

private:
  int64_t offset(int layer, int kv_head, bool value) const;

  int64_t head_dim_, kv_heads_, page_elements_;
  bool f32_;
  int64_t pages_ = 0;
  std::unique_ptr<void, void (*)(void*)> data_;
};

// cos and sin of every token's rotation, (T, head_dim / 2) each, YaRN's concentration included.
struct RopeTable {
  std::vector<float> cos, sin;
};

// YaRN's inverse frequencies (Peng et al. 2023, "NTK-by-parts"; SPEC "Forward" 3), (head_dim / 2).
std::vector<double> yarn_inverse_frequencies(const ModelConfig& config);
// 0.1 · ln(factor) + 1, or 1 where factor ≤ 1.
double yarn_concentration(const ModelConfig& config);

RopeTable make_rope_table(const ModelConfig& config, const std::vector<double>& inverse_frequencies,
                          const std::vector<int32_t>& positions);

// Rotates q and k, stores k and v into pages, attends. out (T, query_size).
void attention(Compute& compute, const ModelConfig& config, const Batch& batch,
               const TokenIndex& index, const RopeTable& rope, const KvPool& kv, int layer,
               const bf16* sinks, float* q, float* k, const float* v, float* out,
               Buffer<float>& state);

struct MoeScratch {
  Buffer<float> logits;
  OperandStorage input, hidden;
};

// x += Σ over the chosen experts of weight · expert(t). t, x: (T, hidden).
void moe(Compute& compute, const ModelConfig& config, const LayerPanels& layer, const float* t,
         float* x, int64_t tokens, MoeScratch& scratch);

// The `count` largest of logits (n), ties to the lowest index, most likely first, with their
// softmax over those alone (SPEC "Forward" 4).
void route(const float* logits, int64_t n, int64_t count, int32_t* experts, float* weights);

}  // namespace gptoss::cpu
