#include "core/cpu/weights.h"

#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>

#include "core/check.h"
#include "core/cpu/ggml.h"
#include "core/cpu/pack.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace gptoss::cpu {

namespace {

constexpr int64_t huge_page = int64_t{2} << 20;
constexpr int64_t cache_line = 64;

// Gives panels of the tensors of one source.
class Loader {
public:
  Loader(WeightSource& source, PanelMemory& memory, DenseWeights dense, ThreadPool& threads)
      : source_(source), memory_(memory), threads_(threads) {
    dense_ = dense == DenseWeights::q8 ? WeightFormat::q8 : WeightFormat::bf16;
    if (const std::optional<DenseWeights> given = source.panels()) {
      GPTOSS_CHECK(*given == dense,
                   "weights: this model is packed with dense weights as {}, asked for {}",
                   name_of(*given), name_of(dense));
    }
  }

  bool as_panels() const { return source_.panels().has_value(); }
  WeightFormat dense() const { return dense_; }

  // A vector of bf16 that outlives its source's view.
  const bf16* vector(const std::string& name, const std::vector<int64_t>& shape) {
    const bf16* from = read_bf16(source_, name, shape);
    if (as_panels()) {
      return from;
    }
    int64_t count = 1;
    for (const int64_t extent : shape) {
      count *= extent;
    }
    const int64_t bytes = count * static_cast<int64_t>(sizeof(bf16));
    uint8_t* to = memory_.allocate(bytes);
    std::memcpy(to, from, static_cast<size_t>(bytes));
    source_.release(name);
    return reinterpret_cast<const bf16*>(to);
  }

  Panels matrix(const std::string& name, WeightFormat format, int64_t rows, int64_t cols) {
    std::string tensor = name + ".weight";
    if (format == WeightFormat::q8 && source_.is_q8_0(tensor)) {
      format = WeightFormat::q8_0;
      tensor += ".q8_0";
    }
    const int64_t bytes = panel_bytes(format, cols);
    if (as_panels()) {
      const uint8_t* data = read_panels(name + ".panels", {panel_count(rows), bytes});
      return {format, rows, cols, data, nullptr};
    }
    PackSource from;
    if (format == WeightFormat::q8_0) {
      from.q8_0 = read_u8(source_, tensor, {rows, cols / panel_block, ggml_q8_0_bytes});
    } else {
      from.weight = read_bf16(source_, tensor, {rows, cols});
    }
    from.rows = rows;
    from.cols = cols;
    uint8_t* to = memory_.allocate(panel_count(rows) * bytes);
    pack_matrix(from, format, to, threads_);
    source_.release(tensor);
    return {format, rows, cols, to, nullptr};
  }

  Panels linear(const std::string& name, WeightFormat format, int64_t rows, int64_t cols) {
    Panels panels = matrix(name, format, rows, cols);
    panels.bias = vector(name + ".bias", {rows});
    return panels;
  }

  ExpertPanels experts(const std::string& name, int64_t count, int64_t rows, int64_t cols) {
    ExpertPanels panels;
    const bool mxfp4 = source_.experts_are_mxfp4();
    panels.format = mxfp4 ? WeightFormat::mxfp4 : WeightFormat::bf16;
    panels.rows = rows;
    panels.cols = cols;
    const int64_t bytes = panel_bytes(panels.format, cols);
    panels.bias = vector(name + "_bias", {count, rows});
    if (as_panels()) {
      panels.data = read_panels(name + "_weight.panels", {count, panel_count(rows), bytes});
      return panels;
    }
    const int64_t blocks = cols / mx_block;
    PackSource from;
    from.rows = rows;
    from.cols = cols;
    if (mxfp4) {
      from.blocks =
          read_u8(source_, name + "_weight.blocks", {count, rows, blocks, mx_block_bytes});
      from.scales = read_u8(source_, name + "_weight.scales", {count, rows, blocks});
    } else {
      from.weight = read_bf16(source_, name + "_weight", {count, rows, cols});
    }
    const int64_t expert_bytes = panel_count(rows) * bytes;
    uint8_t* to = memory_.allocate(count * expert_bytes);
    for (int64_t e = 0; e < count; ++e) {
      pack_matrix(from, panels.format, to + e * expert_bytes, threads_);
      if (mxfp4) {
        from.blocks += rows * blocks * mx_block_bytes;
        from.scales += rows * blocks;
      } else {
        from.weight += rows * cols;
      }
    }
    for (const char* part : {".blocks", ".scales"}) {
      if (mxfp4) {
        source_.release(name + "_weight" + part);
      }
    }
    if (!mxfp4) {
      source_.release(name + "_weight");
    }
    panels.data = to;
    return panels;
  }

private:
  static const char* name_of(DenseWeights dense) {
    return dense == DenseWeights::q8 ? "q8" : "published";
  }

  const uint8_t* read_panels(const std::string& name, const std::vector<int64_t>& shape) {
    const uint8_t* data = read_u8(source_, name, shape);
    GPTOSS_CHECK(reinterpret_cast<uintptr_t>(data) % cache_line == 0,
                 "tensor {}: address is not a multiple of {} bytes", name, cache_line);
    return data;
  }

  WeightSource& source_;
  PanelMemory& memory_;
  WeightFormat dense_ = WeightFormat::bf16;
  ThreadPool& threads_;
};

}  // namespace

void PanelMemory::Free::operator()(uint8_t* p) const { std::free(p); }

uint8_t* PanelMemory::allocate(int64_t bytes) {
  const int64_t alignment = bytes >= huge_page ? huge_page : cache_line;
  // Not rounded up to whole huge pages: the last one stays small where the system allows.
  const int64_t size = (bytes + cache_line - 1) / cache_line * cache_line;
  void* memory = nullptr;
  GPTOSS_CHECK(
      posix_memalign(&memory, static_cast<size_t>(alignment), static_cast<size_t>(size)) == 0,
      "cannot allocate {} bytes for weights", size);
#ifdef MADV_HUGEPAGE
  if (bytes >= huge_page) {
    madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);  // a hint: failing is harmless
  }
#endif
  pieces_.emplace_back(static_cast<uint8_t*>(memory));
  bytes_ += size;
  return pieces_.back().get();
}

ModelPanels load_panels(const ModelConfig& c, int experts, WeightSource& source, DenseWeights dense,
                        ThreadPool& threads) {
  ModelPanels model;
  Loader loader(source, model.memory, dense, threads);
  const int64_t hidden = c.hidden_size;
  model.embedding = read_bf16(source, "embedding.weight", {c.vocab_size, hidden});
  model.norm = loader.vector("norm.scale", {hidden});
  model.unembedding = loader.matrix("unembedding", loader.dense(), c.vocab_size, hidden);
  for (int layer = 0; layer < c.num_hidden_layers; ++layer) {
    const std::string attn = "block." + std::to_string(layer) + ".attn.";
    const std::string mlp = "block." + std::to_string(layer) + ".mlp.";
    LayerPanels w;
    w.attn_norm = loader.vector(attn + "norm.scale", {hidden});
    w.q = loader.linear(attn + "q", loader.dense(), c.query_size(), hidden);
    w.k = loader.linear(attn + "k", loader.dense(), c.kv_size(), hidden);
    w.v = loader.linear(attn + "v", loader.dense(), c.kv_size(), hidden);
    w.sinks = loader.vector(attn + "sinks", {c.num_attention_heads});
    w.out = loader.linear(attn + "out", loader.dense(), hidden, c.query_size());
    w.mlp_norm = loader.vector(mlp + "norm.scale", {hidden});
    w.gate = loader.linear(mlp + "gate", WeightFormat::bf16, c.num_experts, hidden);
    w.mlp1 = loader.experts(mlp + "mlp1", experts, 2 * c.intermediate_size, hidden);
    w.mlp2 = loader.experts(mlp + "mlp2", experts, hidden, c.intermediate_size);
    model.layers.push_back(w);
  }
  return model;
}

}  // namespace gptoss::cpu
