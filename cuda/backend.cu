// The layer loop on the GPU.
#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/batch.h"
#include "core/check.h"
#include "core/rope.h"
#include "cuda/choose.h"
#include "cuda/graphs.h"
#include "cuda/inputs.h"
#include "cuda/kernels.h"
#include "cuda/model.h"
#include "cuda/sampling.h"
#include "cuda/workspace.h"

namespace gptoss::cuda {

namespace {

constexpr int rows_at_a_time = 256;  // of logits
constexpr int graph_tokens = 256;    // steps of decoding up to this size are captured

class CudaBackend final : public Backend {
public:
  explicit CudaBackend(const Options& options)
      : stream_(options.shard.rank), shard_(options.shard), communicator_(options.communicator) {
    GPTOSS_CHECK(options.activation == Activation::bf16,
                 "device cuda: expected activation bf16, found f32");
    GPTOSS_CHECK(options.weights == DenseWeights::published,
                 "device cuda: expected published weights, found q8");
    GPTOSS_CHECK(options.kv == KvFormat::bf16, "device cuda: expected a bf16 cache, found int8");
  }

  void load(const ModelConfig& c, WeightSource& source) override {
    check_config(c);
    GPTOSS_CHECK(!source.panels(), "device cuda: a model packed for the CPU cannot be used");
    GPTOSS_CHECK(source.experts_are_mxfp4(), "device cuda: expected MXFP4 experts, found bf16");
    GPTOSS_CHECK(
        c.hidden_size % mx_block == 0 && c.query_size() % 8 == 0 && c.head_dim % 8 == 0,
        "device cuda: expected a hidden size that 32 divides and heads that 8 divides, found "
        "{} and {}",
        c.hidden_size, c.head_dim);
    GPTOSS_CHECK(c.num_experts <= 256 && c.experts_per_token <= 8,
                 "device cuda: expected at most 256 experts of which at most 8 are chosen, found "
                 "{} and {}",
                 c.num_experts, c.experts_per_token);
    config_ = c;
    model_ = load_model(c, shard_.experts(c), source, stream_);
    const std::vector<double> frequencies = yarn_inverse_frequencies(c);
    frequencies_ = DeviceMemory(frequencies.size() * sizeof(double));
    frequencies_.copy_from_host(frequencies.data(), frequencies_.bytes());
  }

  int64_t page_bytes() const override {
    GPTOSS_CHECK(!model_.layers.empty(), "no model is loaded");
    return page_elements() * static_cast<int64_t>(sizeof(bf16));
  }

  int64_t free_bytes() const override { return free_device_bytes(); }

  void alloc_kv(int64_t pages) override {
    GPTOSS_CHECK(pages_ == 0, "the KV pool is already allocated ({} pages)", pages_);
    GPTOSS_CHECK(pages > 0 && pages < (int64_t{1} << 27), "KV pages must lie in 1..2^27, found {}",
                 pages);
    try {
      kv_ = DeviceMemory(static_cast<size_t>(pages * page_bytes()));
    } catch (const OutOfMemory& error) {
      throw Error(format("{}: {} KV pages of {} bytes were asked for, {} would fit", error.what(),
                         pages, page_bytes(), plan_kv(free_device_bytes())));
    }
    pages_ = pages;
  }

  void step(const Batch& batch, const Output& output) override {
    const TokenIndex index = index_batch(batch, config_, pages_);
    const bool any_shape = !has_attention(config_.group_size(), config_.head_dim);
    const StepShape shape = inputs_.upload(
        batch, index, any_shape ? 0 : prefill_tokens_a_tile(config_.group_size()), stream_.get());
    workspace_.reserve(config_, shape.tokens, std::min(batch.num_rows, rows_at_a_time),
                       splits(shape), stream_.get());
    // Ranks other than the first want no logits.
    const bool decoding = shape.prefill_tiles == 0 && shape.tokens <= graph_tokens &&
                          (batch.num_rows == shape.tokens || batch.num_rows == 0) &&
                          output.hidden == nullptr;
    if (decoding) {
      const GraphKey key{shape.tokens,  batch.num_rows,       shape.max_blocks,
                         splits(shape), inputs_.generation(), workspace_.generation()};
      graphs_.run(key, stream_.get(), [&] {
        layers(shape, Output{});
        if (batch.num_rows > 0) {
          logits(0, batch.num_rows);
        }
      });
      give(batch, output, 0, batch.num_rows);
      synchronize(stream_);
      return;
    }
    layers(shape, output);
    if (batch.num_rows == 0 && output.hidden == nullptr) {
      return;  // nothing comes back: the next step is planned while this one runs
    }
    for (int first = 0; first < batch.num_rows; first += rows_at_a_time) {
      const int rows = std::min(rows_at_a_time, batch.num_rows - first);
      logits(first, rows);
      give(batch, output, first, rows);
    }
    synchronize(stream_);
  }

  std::vector<std::pair<std::string, std::string>> info() const override {
    const Device& device = stream_.get().device;
    return {{"backend", "cuda"},
            {"device", format("compute capability {}.{}, {} multiprocessors", device.major,
                              device.minor, device.multiprocessors)},
            {"activation", "bf16"},
            {"dense_weights", "bf16, as published"},
            {"expert_weights", "mxfp4"},
            {"kv_cache", "bf16"},
            {"weight_bytes", std::to_string(model_bytes(config_, shard_.experts(config_)))}};
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

  int splits(const StepShape& shape) const {
    return decode_splits(std::max(shape.decode_tiles, 1), config_.num_key_value_heads,
                         shape.max_blocks, stream_.get().device.multiprocessors);
  }

  // Every layer on the step's tokens.
  void layers(const StepShape& shape, const Output& output) {
    const ModelConfig& c = config_;
    const Workspace& s = workspace_;
    const StepInputs& in = inputs_.on_device();
    const int tokens = shape.tokens, hidden = c.hidden_size;
    const int pairs = tokens * c.experts_per_token;
    const bool few = tokens <= 64;
    const GroupArgs grouping{s.experts,     s.start, s.active,          s.pair_of_row,
                             s.row_of_pair, pairs,   shard_.experts(c), shard_.first_expert(c)};
    embed({model_.embedding.as<bf16>(), in.token_ids, s.x, tokens, hidden}, stream_);
    rope_tables({in.position, frequencies_.as<double>(), yarn_concentration(c), s.cos, s.sin,
                 tokens, c.head_dim / 2},
                stream_);
    for (int i = 0; i < c.num_hidden_layers; ++i) {
      const Layer& w = model_.layers[static_cast<size_t>(i)];
      const KvGroup group = c.is_sliding(i) ? kv_sliding : kv_full;
      const KvPages kv = pages_of_layer(i);

      rms_norm({residual(i > 0, true), w.attn_norm.as<bf16>(), s.t, tokens, hidden, c.rms_norm_eps,
                nullptr},
               stream_);
      if (i > 0) {
        copy_hidden(output, i - 1, tokens);
      }
      linear(w.qkv, s.t, s.qkv, tokens, nullptr, false);
      rope_and_store({s.qkv, w.qkv.bias.as<bf16>(), s.cos, s.sin, in.slots[group], s.q, kv, tokens,
                      c.num_attention_heads},
                     stream_);
      attention(i, shape, kv, w);
      Residual after_attention = residual(false, false);
      if (communicator_ == nullptr) {
        linear(w.out, s.attended, s.x, tokens, w.out.bias.as<bf16>(), true);
      } else {
        linear(w.out, s.attended, s.partial, tokens, w.out.bias.as<bf16>(), false);
        sum_over_ranks(tokens);
        after_attention.partial = s.partial;
        after_attention.store = true;
      }

      route({after_attention, w.mlp_norm.as<bf16>(), s.t, w.gate.weight.as<bf16>(),
             w.gate.bias.as<bf16>(), s.experts, s.weights, tokens, hidden, c.num_experts,
             c.experts_per_token, c.rms_norm_eps, few ? s.ended : nullptr, grouping},
            stream_);
      if (!few) {
        group_by_expert(grouping, stream_);
      }
      ExpertArgs of_layer = expert_args(w.gate_up, pairs);
      of_layer.x = s.t;
      of_layer.pair_of_row = s.pair_of_row;
      of_layer.h = s.h;
      experts(of_layer, stream_);
      of_layer = expert_args(w.down, pairs);
      of_layer.x = s.h;
      of_layer.y = s.expert_out;
      experts(of_layer, stream_);
      if (communicator_ != nullptr) {
        combine({s.expert_out, s.row_of_pair, s.weights, s.partial, tokens, hidden,
                 c.experts_per_token},
                stream_);
        sum_over_ranks(tokens);
      }
    }
    if (output.hidden != nullptr) {
      rms_norm({residual(true, true), nullptr, nullptr, tokens, hidden, c.rms_norm_eps, nullptr},
               stream_);
      copy_hidden(output, c.num_hidden_layers - 1, tokens);
    }
    up_to_date_ = output.hidden != nullptr;
  }

  // The residual stream, with what the experts of the last layer have left to be added.
  Residual residual(bool experts_too, bool store) const {
    const Workspace& s = workspace_;
    Residual r;
    r.x = s.x;
    if (experts_too && communicator_ != nullptr) {
      r.partial = s.partial;
      r.store = store;
    } else if (experts_too) {
      r.expert_out = s.expert_out;
      r.row_of_pair = s.row_of_pair;
      r.weights = s.weights;
      r.chosen = config_.experts_per_token;
      r.store = store;
    }
    return r;
  }

  // What all ranks of a group have computed together.
  void sum_over_ranks(int tokens) const {
    communicator_->all_reduce(workspace_.partial, int64_t{tokens} * config_.hidden_size,
                              stream_.get().handle);
  }

  void copy_hidden(const Output& output, int layer, int tokens) const {
    if (output.hidden != nullptr) {
      const int64_t count = int64_t{tokens} * config_.hidden_size;
      copy_async_to(output.hidden + layer * count, workspace_.x,
                    static_cast<size_t>(count) * sizeof(float), stream_);
    }
  }

  ExpertArgs expert_args(const Experts& w, int pairs) const {
    const Workspace& s = workspace_;
    ExpertArgs a{};
    a.pairs_a_row = config_.experts_per_token;
    a.start = s.start;
    a.active = s.active;
    a.codes = w.codes.as<uint8_t>();
    a.scales = w.scales.as<uint8_t>();
    a.bias = w.bias.as<bf16>();
    a.pairs = pairs;
    a.experts = shard_.experts(config_);
    a.n = w.rows;
    a.k = w.columns;
    a.limit = config_.swiglu_limit;
    return a;
  }

  void attention(int layer, const StepShape& shape, const KvPages& kv, const Layer& w) {
    const ModelConfig& c = config_;
    const Workspace& s = workspace_;
    const StepInputs& in = inputs_.on_device();
    const bool sliding = c.is_sliding(layer);
    AttentionArgs a{};
    a.q = s.q;
    a.sinks = w.sinks.as<bf16>();
    a.out = s.attended;
    a.pages = in.block_table[sliding ? kv_sliding : kv_full];
    a.sequence = in.sequence;
    a.position = in.position;
    a.kv = kv;
    a.heads = c.num_attention_heads;
    a.max_blocks = shape.max_blocks;
    a.window = sliding ? c.sliding_window : INT32_MAX;
    a.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    if (!has_attention(c.group_size(), c.head_dim)) {
      a.tokens = shape.tokens;
      return attention_any(a, stream_);
    }
    if (shape.decode_tiles > 0) {
      a.tokens = shape.decode_tiles;
      a.tiles = in.decode_tiles;
      a.parts = s.parts;
      a.ended = s.ended;
      const int64_t max_pages = sliding ? c.sliding_window / page_size + 2 : shape.max_blocks;
      a.splits = std::min(
          splits(shape), decode_splits(shape.decode_tiles, kv.kv_heads, static_cast<int>(max_pages),
                                       stream_.get().device.multiprocessors));
      attention_decode(a, stream_);
    }
    if (shape.prefill_tiles > 0) {
      a.tokens = shape.prefill_tiles;
      a.tiles = in.prefill_tiles;
      attention_prefill(a, stream_);
    }
  }

  void linear(const Linear& w, const bf16* x, float* y, int rows, const bf16* bias,
              bool add) const {
    GemmArgs a{};
    a.x = x;
    a.w = w.weight.as<bf16>();
    a.bias = bias;
    a.y = y;
    a.m = rows;
    a.n = w.rows;
    a.k = w.columns;
    a.x_stride = w.columns;
    a.y_stride = w.rows;
    a.add = add;
    switch (product_for(a.m, a.k, stream_.get().device.major, stream_.get().device.shared_bytes)) {
      case Product::few_rows:
        return gemv_bf16(a, stream_);
      case Product::tiles:
        return gemm_bf16(a, stream_);
      case Product::hopper:
        return gemm_hopper(a, stream_);
    }
  }

  void logits(int first, int rows) {
    const Workspace& s = workspace_;
    rms_norm({residual(!up_to_date_, false), model_.norm.as<bf16>(), s.t, rows, config_.hidden_size,
              config_.rms_norm_eps, inputs_.on_device().logits_rows + first},
             stream_);
    linear(model_.unembedding, s.t, s.logits, rows, nullptr, false);
  }

  // Logits, and tokens drawn from them, to the caller.
  void give(const Batch& batch, const Output& output, int first, int rows) {
    if (output.logits != nullptr) {
      const int64_t vocab = config_.vocab_size;
      copy_async_to(output.logits + first * vocab, workspace_.logits,
                    static_cast<size_t>(rows * vocab) * sizeof(float), stream_);
    }
    sampling_.run(workspace_.logits, config_.vocab_size, batch, output, first, rows, stream_.get());
  }

  StreamOwner stream_;  // first: it outlives what runs on it
  Shard shard_;
  Communicator* communicator_;
  ModelConfig config_;
  Model model_;
  DeviceMemory frequencies_, kv_;
  int64_t pages_ = 0;
  InputBuffers inputs_;
  Workspace workspace_;
  Graphs graphs_;
  DeviceSampling sampling_;
  bool up_to_date_ = false;  // the residual stream: nothing is left to be added
};

}  // namespace

std::unique_ptr<Backend> make_backend(const Options& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace gptoss::cuda
