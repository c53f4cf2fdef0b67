// The layer loop on the GPU, over weights in the published layouts.
#include "cuda_backend.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "batch.h"
#include "check.h"
#include "kernels.h"
#include "rope.h"
#include "sampler.h"

namespace gptoss::cuda {

namespace {

// Device memory for one step's arrays: grows, and is kept.
template <class T>
class Scratch {
public:
  T* reserve(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes > memory_.bytes()) {
      memory_ = DeviceMemory();  // the old one first: both may not fit
      memory_ = DeviceMemory(bytes);
    }
    return memory_.as<T>();
  }
  // The same with these values.
  const T* upload(const T* values, int64_t count) {
    T* to = reserve(count);
    memory_.copy_from_host(values, static_cast<size_t>(count) * sizeof(T));
    return to;
  }
  void download(T* to, int64_t count) const {
    memory_.copy_to_host(to, static_cast<size_t>(count) * sizeof(T));
  }
  const T* upload(const std::vector<T>& values) {
    return upload(values.data(), static_cast<int64_t>(values.size()));
  }

private:
  DeviceMemory memory_;
};

struct Linear {
  DeviceMemory weight, bias;
  int rows = 0, cols = 0;
};

struct Experts {
  DeviceMemory blocks, scales, bias;
  int rows = 0, cols = 0;
};

struct Layer {
  DeviceMemory attn_norm, sinks, mlp_norm;
  Linear q, k, v, out, gate;
  Experts mlp1, mlp2;
};

class Loader {
public:
  explicit Loader(WeightSource& source) : source_(source) {}

  DeviceMemory vector(const std::string& name, const std::vector<int64_t>& shape) {
    return upload(name, read_bf16(source_, name, shape), shape, sizeof(bf16));
  }

  Linear linear(const std::string& name, int rows, int cols) {
    Linear l;
    l.weight = vector(name + ".weight", {rows, cols});
    l.bias = vector(name + ".bias", {rows});
    l.rows = rows;
    l.cols = cols;
    return l;
  }

  Experts experts(const std::string& name, int count, int rows, int cols) {
    const int64_t blocks = cols / mx_block;
    const std::vector<int64_t> codes = {count, rows, blocks, mx_block_bytes};
    const std::vector<int64_t> scales = {count, rows, blocks};
    Experts e;
    e.blocks =
        upload(name + "_weight.blocks", read_u8(source_, name + "_weight.blocks", codes), codes, 1);
    e.scales = upload(name + "_weight.scales", read_u8(source_, name + "_weight.scales", scales),
                      scales, 1);
    e.bias = vector(name + "_bias", {count, rows});
    e.rows = rows;
    e.cols = cols;
    return e;
  }

private:
  DeviceMemory upload(const std::string& name, const void* from, const std::vector<int64_t>& shape,
                      size_t size) {
    const int64_t count =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    DeviceMemory memory(static_cast<size_t>(count) * size);
    memory.copy_from_host(from, memory.bytes());
    source_.release(name);
    return memory;
  }

  WeightSource& source_;
};

class CudaBackend final : public Backend {
public:
  explicit CudaBackend(const Options& options) {
    GPTOSS_CHECK(options.activation == Activation::bf16,
                 "device cuda: expected activation bf16, found f32");
    GPTOSS_CHECK(options.weights == DenseWeights::published,
                 "device cuda: expected published weights, found q8");
    GPTOSS_CHECK(options.kv == KvFormat::bf16, "device cuda: expected a bf16 cache, found int8");
  }

  void load(const ModelConfig& c, WeightSource& source) override {
    check_config(c);
    GPTOSS_CHECK(source.packed() < 0, "device cuda: a model packed for the CPU cannot be used");
    GPTOSS_CHECK(source.experts_are_mxfp4(), "device cuda: expected MXFP4 experts, found bf16");
    GPTOSS_CHECK(
        c.hidden_size % mx_block == 0 && c.query_size() % 8 == 0,
        "device cuda: expected a hidden size that 32 divides and heads that 8 divides, found "
        "{} and {}",
        c.hidden_size, c.query_size());
    config_ = c;
    Loader loader(source);
    const int hidden = c.hidden_size;
    embedding_ = loader.vector("embedding.weight", {c.vocab_size, hidden});
    norm_ = loader.vector("norm.scale", {hidden});
    unembedding_.weight = loader.vector("unembedding.weight", {c.vocab_size, hidden});
    unembedding_.rows = c.vocab_size;
    unembedding_.cols = hidden;
    layers_.clear();
    for (int i = 0; i < c.num_hidden_layers; ++i) {
      const std::string attn = "block." + std::to_string(i) + ".attn.";
      const std::string mlp = "block." + std::to_string(i) + ".mlp.";
      Layer l;
      l.attn_norm = loader.vector(attn + "norm.scale", {hidden});
      l.q = loader.linear(attn + "q", c.query_size(), hidden);
      l.k = loader.linear(attn + "k", c.kv_size(), hidden);
      l.v = loader.linear(attn + "v", c.kv_size(), hidden);
      l.sinks = loader.vector(attn + "sinks", {c.num_attention_heads});
      l.out = loader.linear(attn + "out", hidden, c.query_size());
      l.mlp_norm = loader.vector(mlp + "norm.scale", {hidden});
      l.gate = loader.linear(mlp + "gate", c.num_experts, hidden);
      l.mlp1 = loader.experts(mlp + "mlp1", c.num_experts, 2 * c.intermediate_size, hidden);
      l.mlp2 = loader.experts(mlp + "mlp2", c.num_experts, hidden, c.intermediate_size);
      layers_.push_back(std::move(l));
    }
    inverse_frequencies_ = yarn_inverse_frequencies(c);
  }

  int64_t page_bytes() const override {
    GPTOSS_CHECK(!layers_.empty(), "no model is loaded");
    return page_elements() * static_cast<int64_t>(sizeof(bf16));
  }

  void alloc_kv(int64_t pages) override {
    GPTOSS_CHECK(pages_ == 0, "the KV pool is already allocated ({} pages)", pages_);
    GPTOSS_CHECK(pages > 0 && pages < (int64_t{1} << 27), "KV pages must lie in 1..2^27, found {}",
                 pages);
    kv_ = DeviceMemory(static_cast<size_t>(pages * page_bytes()));
    pages_ = pages;
  }

  void step(const Batch& batch, const Output& output) override {
    const TokenIndex index = index_batch(batch, config_, pages_);
    const ModelConfig& c = config_;
    const int tokens = batch.num_tokens;
    const int hidden = c.hidden_size;
    const int pairs = tokens * c.experts_per_token;
    upload(batch, index);
    float* x = x_.reserve(int64_t{tokens} * hidden);  // the residual stream
    bf16* t = t_.reserve(int64_t{tokens} * hidden);   // normed
    float* exact = exact_.reserve(int64_t{tokens} * hidden);
    float* q = q_.reserve(int64_t{tokens} * c.query_size());
    float* k = k_.reserve(int64_t{tokens} * c.kv_size());
    float* v = v_.reserve(int64_t{tokens} * c.kv_size());
    bf16* attended = attended_.reserve(int64_t{tokens} * c.query_size());
    float* gate_logits = gate_logits_.reserve(int64_t{tokens} * c.num_experts);
    int32_t* experts = experts_.reserve(pairs);
    float* weights = weights_.reserve(pairs);
    int32_t* start = start_.reserve(c.num_experts + 1);
    int32_t* pair_of_row = pair_of_row_.reserve(pairs);
    int32_t* row_of_pair = row_of_pair_.reserve(pairs);
    bf16* h = h_.reserve(int64_t{pairs} * c.intermediate_size);
    float* y = y_.reserve(int64_t{pairs} * hidden);

    embed({embedding_.as<bf16>(), ids_, x, tokens, hidden}, stream_);
    for (int i = 0; i < c.num_hidden_layers; ++i) {
      const Layer& w = layers_[static_cast<size_t>(i)];
      const int group = c.is_sliding(i) ? kv_sliding : kv_full;
      const KvPages kv = pages_of_layer(i);

      norm(x, w.attn_norm, t, tokens);
      linear(w.q, t, q, tokens, false);
      linear(w.k, t, k, tokens, false);
      linear(w.v, t, v, tokens, false);
      rope_and_store({q, k, v, cos_, sin_, slots_[group], kv, tokens, c.num_attention_heads},
                     stream_);
      const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
      const int window = c.is_sliding(i) ? c.sliding_window : INT32_MAX;
      attention({q, w.sinks.as<bf16>(), attended, tables_[group], sequence_, position_, kv, tokens,
                 c.num_attention_heads, batch.max_blocks, window, scale},
                stream_);
      linear(w.out, attended, x, tokens, true);

      norm(x, w.mlp_norm, t, tokens, exact);
      gate({exact, w.gate.weight.as<bf16>(), w.gate.bias.as<bf16>(), gate_logits, tokens, hidden,
            c.num_experts},
           stream_);
      route({gate_logits, experts, weights, tokens, c.num_experts, c.experts_per_token}, stream_);
      group_by_expert({experts, start, pair_of_row, row_of_pair, pairs, c.num_experts}, stream_);
      expert_gate_up(of_experts(w.mlp1, t, pair_of_row, start, pairs), c.swiglu_limit, h, stream_);
      expert_down(of_experts(w.mlp2, h, nullptr, start, pairs), y, stream_);
      combine({y, row_of_pair, weights, x, tokens, hidden, c.experts_per_token}, stream_);
      if (output.hidden != nullptr) {
        x_.download(output.hidden + int64_t{i} * tokens * hidden, int64_t{tokens} * hidden);
      }
    }
    finish(batch, output, x);
  }

  std::vector<std::pair<std::string, std::string>> info() const override {
    return {{"backend", "cuda"},
            {"activation", "bf16"},
            {"dense_weights", "bf16, as published"},
            {"expert_weights", "mxfp4"},
            {"kv_cache", "bf16"}};
  }

private:
  int64_t layer_elements() const {
    return int64_t{2} * config_.num_key_value_heads * page_size * config_.head_dim;
  }
  // A page serves either group of layers, so it has room for the larger of the two.
  int64_t page_elements() const { return (config_.num_hidden_layers + 1) / 2 * layer_elements(); }

  KvPages pages_of_layer(int layer) const {
    return {kv_.as<bf16>() + layer / 2 * layer_elements(), page_elements(),
            config_.num_key_value_heads, config_.head_dim};
  }

  void upload(const Batch& batch, const TokenIndex& index) {
    const int tokens = batch.num_tokens;
    ids_ = ids_memory_.upload(batch.token_ids, tokens);
    position_ = position_memory_.upload(index.position);
    sequence_ = sequence_memory_.upload(index.sequence);
    const RopeTable rope = make_rope_table(config_, inverse_frequencies_, index.position);
    cos_ = cos_memory_.upload(rope.cos);
    sin_ = sin_memory_.upload(rope.sin);
    for (int group = 0; group < kv_groups; ++group) {
      const int32_t* table = batch.block_table[group];
      tables_[group] =
          table_memory_[group].upload(table, int64_t{batch.num_sequences} * batch.max_blocks);
      std::vector<int32_t> slots(static_cast<size_t>(tokens));
      for (size_t t = 0; t < slots.size(); ++t) {
        const int32_t position = index.position[t];
        const int64_t block = int64_t{index.sequence[t]} * batch.max_blocks + position / page_size;
        slots[t] = table[block] * page_size + position % page_size;
      }
      slots_[group] = slots_memory_[group].upload(slots);
    }
  }

  void norm(const float* x, const DeviceMemory& scale, bf16* y, int rows,
            float* unrounded = nullptr, const int32_t* row_ids = nullptr) {
    NormArgs a{x, scale.as<bf16>(), y, rows, config_.hidden_size, config_.rms_norm_eps};
    a.unrounded = unrounded;
    a.row_ids = row_ids;
    rms_norm(a, stream_);
  }

  void linear(const Linear& w, const bf16* x, float* y, int rows, bool add) {
    GemmArgs a{};
    a.x = x;
    a.w = w.weight.as<bf16>();
    a.bias = w.bias.bytes() > 0 ? w.bias.as<bf16>() : nullptr;
    a.y = y;
    a.m = rows;
    a.n = w.rows;
    a.k = w.cols;
    a.x_stride = w.cols;
    a.y_stride = w.rows;
    a.add = add;
    (rows <= gemv_rows ? gemv_bf16 : gemm_bf16)(a, stream_);
  }

  ExpertArgs of_experts(const Experts& w, const bf16* x, const int32_t* pair_of_row,
                        const int32_t* start, int pairs) const {
    return {x,
            pair_of_row,
            config_.experts_per_token,
            start,
            w.blocks.as<uint8_t>(),
            w.scales.as<uint8_t>(),
            w.bias.as<bf16>(),
            pairs,
            config_.num_experts,
            w.rows,
            w.cols};
  }

  // Logits of the wanted rows, and from them tokens.
  void finish(const Batch& batch, const Output& output, const float* x) {
    const int vocab = config_.vocab_size;
    constexpr int at_a_time = 32;
    for (int first = 0; first < batch.num_rows; first += at_a_time) {
      const int rows = std::min(at_a_time, batch.num_rows - first);
      bf16* t = t_.reserve(int64_t{rows} * config_.hidden_size);
      float* logits = logits_.reserve(int64_t{rows} * vocab);
      norm(x, norm_, t, rows, nullptr, rows_memory_.upload(batch.logits_rows + first, rows));
      linear(unembedding_, t, logits, rows, false);
      host_logits_.resize(static_cast<size_t>(rows) * static_cast<size_t>(vocab));
      logits_.download(host_logits_.data(), int64_t{rows} * vocab);
      if (output.logits != nullptr) {
        std::copy(host_logits_.begin(), host_logits_.end(), output.logits + int64_t{first} * vocab);
      }
      sample_rows(host_logits_.data(), vocab, batch, first, rows, output, sampler_);
    }
  }

  ModelConfig config_;
  std::vector<double> inverse_frequencies_;
  DeviceMemory embedding_, norm_, kv_;
  Linear unembedding_;
  std::vector<Layer> layers_;
  int64_t pages_ = 0;
  Stream stream_ = nullptr;

  // The batch on the device.
  Scratch<int32_t> ids_memory_, position_memory_, sequence_memory_, rows_memory_;
  Scratch<int32_t> table_memory_[kv_groups], slots_memory_[kv_groups];
  Scratch<float> cos_memory_, sin_memory_;
  const int32_t *ids_ = nullptr, *position_ = nullptr, *sequence_ = nullptr;
  const int32_t *tables_[kv_groups] = {}, *slots_[kv_groups] = {};
  const float *cos_ = nullptr, *sin_ = nullptr;

  Scratch<float> x_, exact_, q_, k_, v_, gate_logits_, weights_, y_, logits_;
  Scratch<bf16> t_, attended_, h_;
  Scratch<int32_t> experts_, start_, pair_of_row_, row_of_pair_;
  std::vector<float> host_logits_;
  SamplerScratch sampler_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(const Options& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace gptoss::cuda
