// The parts of a layer, spread over threads: what backend.cpp calls. Kernels know one thread, these
// know all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/batch.h"
#include "core/config.h"
#include "core/cpu/kv_pool.h"
#include "core/cpu/linear.h"
#include "core/cpu/weights.h"
#include "core/rope.h"

namespace gptoss::cpu {

// What a layer computes on.
struct LayerInput {
  const ModelConfig& config;
  const Shard& shard;
  const Batch& batch;
  const TokenIndex& index;
  const RopeTable& rope;
  const KvPool& kv;
  int layer;
  const LayerPanels& weights;
};

// Rotates q and k, stores k and v into pages, attends. out (T, query_size).
void attention(Compute& compute, const LayerInput& in, float* q, float* k, const float* v,
               float* out, Buffer<float>& state);

struct MoeScratch {
  Buffer<float> logits;
  OperandStorage input, hidden;
};

// x += Σ over the chosen experts that this rank has of weight · expert(t). t, x: (T, hidden).
void moe(Compute& compute, const LayerInput& in, const float* t, float* x, MoeScratch& scratch);

// The `count` largest of logits (n), ties to the lowest index, most likely first, with their
// softmax over those alone (docs/spec.md, "Router and experts").
void route(const float* logits, int64_t n, int64_t count, int32_t* experts, float* weights);

}  // namespace gptoss::cpu
