#include "core/cpu/backend.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/cpu/kernels/select.h"
#include "core/cpu/layer.h"
#include "core/cpu/machine.h"
#include "core/cpu/threads.h"
#include "core/sampler.h"

namespace gptoss::cpu {

namespace {

// Logits rows held at a time: 32 rows of 201,088 float32 are 26 MB.
constexpr int64_t logits_block = 32;

// Ranks of a group share the machine.
int thread_count(const Options& options) {
  return options.threads > 0 ? options.threads
                             : std::max(1, usable_threads() / options.shard.ranks);
}

class CpuBackend final : public Backend {
public:
  explicit CpuBackend(const Options& options)
      : isa_(select_isa()),
        options_(options),
        compute_(isa_, thread_count(options), options.activation == Activation::bf16) {}

  void load(const ModelConfig& config, WeightSource& source) override {
    check_config(config);
    config_ = config;
    model_ = load_panels(config, options_.shard.experts(config), source, options_.weights,
                         compute_.threads);
    experts_ = source.experts_are_mxfp4() ? "mxfp4" : "bf16";
    inverse_frequencies_ = yarn_inverse_frequencies(config);
    kv_ = std::make_unique<KvPool>(config, options_.kv == KvFormat::int8 ? KvStorage::int8
                                           : compute_.round              ? KvStorage::bf16
                                                                         : KvStorage::f32);
  }

  int64_t page_bytes() const override {
    require_loaded();
    return kv_->page_bytes();
  }

  void alloc_kv(int64_t pages) override {
    require_loaded();
    kv_->alloc(pages);
  }

  void step(const Batch& batch, const Output& output) override {
    require_loaded();
    const TokenIndex index = index_batch(batch, config_, kv_->pages());
    const int64_t tokens = batch.num_tokens;
    const int64_t hidden = config_.hidden_size;
    const int64_t q_size = config_.query_size();
    const int64_t kv_size = config_.kv_size();
    float* x = x_.reserve(tokens * hidden);   // (T, hidden) the residual stream
    float* t = t_.reserve(tokens * hidden);   // (T, hidden) normed; then a block's result
    float* q = q_.reserve(tokens * q_size);   // (T, heads · head_dim)
    float* k = k_.reserve(tokens * kv_size);  // (T, kv_heads · head_dim)
    float* v = v_.reserve(tokens * kv_size);
    float* attended = attended_.reserve(tokens * q_size);
    const RopeTable rope = make_rope_table(config_, inverse_frequencies_, index.position);

    embed(batch, x);
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const LayerPanels& w = model_.layers[static_cast<size_t>(layer)];
      const LayerInput in{config_, options_.shard, batch, index, rope, *kv_, layer, w};

      norm(x, w.attn_norm, t, tokens);
      const Operand normed = operand(t, tokens, hidden, w.q);
      linear(compute_, normed, {{&w.q, q, q_size}, {&w.k, k, kv_size}, {&w.v, v, kv_size}});
      attention(compute_, in, q, k, v, attended, attention_state_);
      const Operand heads = operand(attended, tokens, q_size, w.out);
      linear(compute_, heads, {{&w.out, t, hidden}});
      add(sum_over_ranks(t, tokens), x, tokens);

      norm(x, w.mlp_norm, t, tokens);
      // One rank adds its experts to x one by one; several first add up their parts
      // (docs/adr/0006).
      if (options_.communicator == nullptr) {
        moe(compute_, in, t, x, moe_scratch_);
      } else {
        float* part = part_.reserve(tokens * hidden);
        std::fill_n(part, tokens * hidden, 0.0f);
        moe(compute_, in, t, part, moe_scratch_);
        add(sum_over_ranks(part, tokens), x, tokens);
      }
      if (output.hidden != nullptr) {
        std::memcpy(output.hidden + layer * tokens * hidden, x,
                    static_cast<size_t>(tokens * hidden) * sizeof(float));
      }
    }
    for (int64_t first = 0; first < batch.num_rows; first += logits_block) {
      finish_rows(batch, output, first, std::min<int64_t>(batch.num_rows, first + logits_block));
    }
  }

  std::vector<std::pair<std::string, std::string>> info() const override {
    return {{"backend", "cpu"},
            {"isa", isa_name(isa_)},
            {"threads", std::to_string(compute_.threads.size())},
            {"activation", compute_.round ? "bf16" : "f32"},
            {"dense_weights", options_.weights == DenseWeights::q8 ? "q8 (int8, groups of 32)"
                                                                   : "bf16, as published"},
            {"expert_weights", experts_},
            {"kv_cache", kv_ != nullptr ? kv_storage_name(kv_->storage()) : ""},
            {"weight_bytes", std::to_string(model_.memory.bytes())}};
  }

private:
  void require_loaded() const { GPTOSS_CHECK(kv_ != nullptr, "no model is loaded"); }

  void embed(const Batch& batch, float* x) {
    const int64_t hidden = config_.hidden_size;
    parallel_for(compute_.threads, batch.num_tokens, hidden, [&](int64_t i, int) {
      const bf16* from = model_.embedding + batch.token_ids[i] * hidden;
      std::transform(from, from + hidden, x + i * hidden,
                     [](bf16 value) { return to_float(value); });
    });
  }

  // Rows of x as the operand of products with `w`.
  Operand operand(const float* x, int64_t rows, int64_t cols, const Panels& w) {
    return make_operand(compute_, x, rows, cols, cols, compute_.product_for(w.format, rows),
                        operand_);
  }

  void norm(const float* x, const bf16* scale, float* y, int64_t rows) {
    const int64_t n = config_.hidden_size;
    parallel_for(compute_.threads, rows, n, [&](int64_t i, int) {
      compute_.kernels.rms_norm({x + i * n, scale, y + i * n, n, config_.rms_norm_eps});
    });
  }

  // What all ranks of a group have computed together.
  float* sum_over_ranks(float* part, int64_t rows) {
    if (options_.communicator != nullptr) {
      options_.communicator->all_reduce(part, rows * config_.hidden_size, nullptr);
    }
    return part;
  }

  // x += t
  void add(const float* t, float* x, int64_t rows) {
    const int64_t n = config_.hidden_size;
    parallel_for(compute_.threads, rows, n, [&](int64_t i, int) {
      compute_.kernels.add_scaled(x + i * n, t + i * n, 1.0f, n);
    });
  }

  // Logits, and from them tokens, of the wanted rows [first, last).
  void finish_rows(const Batch& batch, const Output& output, int64_t first, int64_t last) {
    const int64_t hidden = config_.hidden_size;
    const int64_t vocab = config_.vocab_size;
    const int64_t rows = last - first;
    float* t = t_.reserve(rows * hidden);
    for (int64_t r = 0; r < rows; ++r) {
      norm(x_.data() + batch.logits_rows[first + r] * hidden, model_.norm, t + r * hidden, 1);
    }
    float* logits = logits_.reserve(rows * vocab);
    linear(compute_, operand(t, rows, hidden, model_.unembedding),
           {{&model_.unembedding, logits, vocab}});
    if (output.logits != nullptr) {
      std::memcpy(output.logits + first * vocab, logits,
                  static_cast<size_t>(rows * vocab) * sizeof(float));
    }
    sample_rows(logits, config_.vocab_size, batch, first, rows, output, sampler_scratch_);
  }

  Isa isa_;
  Options options_;
  Compute compute_;
  ModelConfig config_;
  ModelPanels model_;
  std::string experts_;
  std::vector<double> inverse_frequencies_;
  std::unique_ptr<KvPool> kv_;
  Buffer<float> x_, t_, part_, q_, k_, v_, attended_, attention_state_, logits_;
  OperandStorage operand_;
  MoeScratch moe_scratch_;
  SamplerScratch sampler_scratch_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(const Options& options) {
  return std::make_unique<CpuBackend>(options);
}

std::string describe_backend() { return describe_isa(); }

}  // namespace gptoss::cpu
