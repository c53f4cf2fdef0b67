// The parts of a layer, spread over threads: what backend.cpp calls. Kernels know one thread, these
// know all of them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "batch.h"
#include "config.h"
#include "cpu/gemm_onednn.h"
#include "cpu/kernels.h"
#include "weights.h"

namespace gptoss::cpu {

// A growing buffer that is never initialised and keeps its memory between steps. 64-byte aligned.
template <class T>
class Buffer {
public:
  T* reserve(int64_t count) {
    if (count > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(
          ::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }

private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// What every part needs: who computes, with which kernels, at which precision.
struct Compute {
  const Kernels& kernels;
  int threads;
  bool round;  // operands of matrix products and the KV cache are bf16
  DenseGemm gemm;
  Buffer<float> scratch;  // (threads, matmul_scratch_rows · widest cols)
  int64_t scratch_stride = 0;

  Compute(Isa isa, int thread_count, bool round_operands)
      : kernels(kernels_for(isa)),
        threads(thread_count),
        round(round_operands),
        gemm(thread_count) {}

  // oneDNN pays once there are enough rows to share its packing of the weights.
  bool use_gemm(int64_t rows) const { return round && rows >= 16 && gemm.available(); }
  float* thread_scratch(int thread) const { return scratch.data() + thread * scratch_stride; }
};

// Rows of activations, ready to be the operand of matrix products.
struct Operand {
  const float* x;  // (rows, cols); already bf16 values where Compute::round
  int64_t rows, cols;
  const bf16* x_bf16;  // (padded_rows(rows), cols), or null where oneDNN is not used
};

// Rounds x in place where Compute::round, and fills `storage` where oneDNN will be used.
Operand make_operand(Compute& compute, float* x, int64_t rows, int64_t cols, Buffer<bf16>& storage);

// y (padded_rows(rows), n), rows y_stride apart, = x · wᵀ + bias. The padding rows hold rubbish.
void linear(Compute& compute, const Operand& x, const bf16* weight, const bf16* bias, int64_t n,
            float* y, int64_t y_stride);

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
  Buffer<float> logits, mlp1_out, hidden, mlp2_out;
  Buffer<bf16> operand, weights;
};

// x += Σ over the chosen experts of weight · expert(t). t, x: (T, hidden); t is left as it is
// except for rounding.
void moe(Compute& compute, const ModelConfig& config, const LayerWeights& weights, float* t,
         float* x, int64_t tokens, MoeScratch& scratch);

// The `count` largest of logits (n), ties to the lowest index, most likely first, with their
// softmax over those alone (SPEC "Forward" 4).
void route(const float* logits, int64_t n, int64_t count, int32_t* experts, float* weights);

}  // namespace gptoss::cpu
