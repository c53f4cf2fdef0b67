#include "cuda/model.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>

#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace gptoss::cuda {

namespace {

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// Copies through two pinned buffers: while the device takes one, the host fills the other, which is
// when a mapped file is read.
class Uploader {
public:
  explicit Uploader(const Stream& stream) : stream_(stream) {}

  void copy(const void* from, size_t bytes, void* to) {
    const auto* source = static_cast<const uint8_t*>(from);
    auto* target = static_cast<uint8_t*>(to);
    for (size_t done = 0; done < bytes;) {
      const size_t part = std::min(bytes - done, part_bytes);
      Buffer& buffer = buffers_[turn_];
      turn_ ^= 1;
      if (buffer.memory.bytes() < part) {
        buffer.memory = PinnedMemory(std::max(part, std::min(part_bytes, bytes)));
      }
      buffer.taken.wait();
      std::memcpy(buffer.memory.as<uint8_t>(), source + done, part);
      copy_async_to(target + done, buffer.memory.as<uint8_t>(), part, stream_);
      buffer.taken.record(stream_);
      done += part;
    }
  }

private:
  static constexpr size_t part_bytes = 32 << 20;
  struct Buffer {
    PinnedMemory memory;
    Event taken;
  };
  const Stream& stream_;
  Buffer buffers_[2];
  int turn_ = 0;
};

class Loader {
public:
  Loader(int experts, WeightSource& source, const Stream& stream)
      : experts_(experts), source_(source), stream_(stream), uploader_(stream) {}

  DeviceMemory vector(const std::string& name, const std::vector<int64_t>& shape) {
    DeviceMemory memory(bytes_of(shape));
    place(name, shape, memory.as<uint8_t>());
    return memory;
  }

  // Row blocks of one matrix that the checkpoint keeps apart.
  Linear linear(const std::vector<std::string>& names, const std::vector<int64_t>& rows,
                int columns) {
    const int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    Linear l;
    l.weight = DeviceMemory(bytes_of({all, columns}));
    l.bias = DeviceMemory(bytes_of({all}));
    l.rows = static_cast<int>(all);
    l.columns = columns;
    int64_t row = 0;
    for (size_t i = 0; i < names.size(); ++i) {
      place(names[i] + ".weight", {rows[i], columns}, l.weight.as<uint8_t>() + row * columns * 2);
      place(names[i] + ".bias", {rows[i]}, l.bias.as<uint8_t>() + row * 2);
      row += rows[i];
    }
    return l;
  }

  Experts experts(const std::string& name, int rows, int columns, bool paired) {
    const int count = experts_;
    const int64_t blocks = columns / mx_block;
    Experts e;
    e.codes = DeviceMemory(static_cast<size_t>(packed_bytes(count, rows, columns)));
    e.scales = DeviceMemory(static_cast<size_t>(packed_scale_bytes(count, rows, columns)));
    const uint8_t* codes =
        stage(codes_, name + "_weight.blocks", {count, rows, blocks, mx_block_bytes});
    const uint8_t* scales = stage(scales_, name + "_weight.scales", {count, rows, blocks});
    pack_experts({codes, scales, e.codes.as<uint8_t>(), e.scales.as<uint8_t>(), count, rows,
                  columns, paired},
                 stream_);
    e.bias = vector(name + "_bias", {count, rows});
    e.rows = rows;
    e.columns = columns;
    return e;
  }

private:
  static size_t bytes_of(const std::vector<int64_t>& shape) {
    return static_cast<size_t>(product(shape)) * sizeof(bf16);
  }

  void place(const std::string& name, const std::vector<int64_t>& shape, void* to) {
    uploader_.copy(read_bf16(source_, name, shape), bytes_of(shape), to);
    source_.release(name);
  }

  const uint8_t* stage(DeviceMemory& memory, const std::string& name,
                       const std::vector<int64_t>& shape) {
    const auto bytes = static_cast<size_t>(product(shape));
    if (memory.bytes() < bytes) {
      synchronize(stream_);  // the last one may still be read
      memory = DeviceMemory();
      memory = DeviceMemory(bytes);
    }
    uploader_.copy(read_u8(source_, name, shape), bytes, memory.as<uint8_t>());
    source_.release(name);
    return memory.as<uint8_t>();
  }

  int experts_;
  WeightSource& source_;
  const Stream& stream_;
  Uploader uploader_;
  DeviceMemory codes_, scales_;  // as published, before they are packed
};

Model read(const ModelConfig& c, int experts, WeightSource& source, const Stream& stream) {
  Loader loader(experts, source, stream);
  const int hidden = c.hidden_size;
  Model m;
  m.embedding = loader.vector("embedding.weight", {c.vocab_size, hidden});
  m.norm = loader.vector("norm.scale", {hidden});
  m.unembedding.weight = loader.vector("unembedding.weight", {c.vocab_size, hidden});
  m.unembedding.rows = c.vocab_size;
  m.unembedding.columns = hidden;
  for (int i = 0; i < c.num_hidden_layers; ++i) {
    const std::string attn = "block." + std::to_string(i) + ".attn.";
    const std::string mlp = "block." + std::to_string(i) + ".mlp.";
    Layer l;
    l.attn_norm = loader.vector(attn + "norm.scale", {hidden});
    l.qkv = loader.linear({attn + "q", attn + "k", attn + "v"},
                          {c.query_size(), c.kv_size(), c.kv_size()}, hidden);
    l.sinks = loader.vector(attn + "sinks", {c.num_attention_heads});
    l.out = loader.linear({attn + "out"}, {hidden}, c.query_size());
    l.mlp_norm = loader.vector(mlp + "norm.scale", {hidden});
    l.gate = loader.linear({mlp + "gate"}, {c.num_experts}, hidden);
    l.gate_up = loader.experts(mlp + "mlp1", 2 * c.intermediate_size, hidden, true);
    l.down = loader.experts(mlp + "mlp2", hidden, c.intermediate_size, false);
    m.layers.push_back(std::move(l));
  }
  synchronize(stream);  // before the buffers go
  return m;
}

}  // namespace

int64_t model_bytes(const ModelConfig& c, int experts) {
  const int64_t hidden = c.hidden_size, q = c.query_size(), kv = c.kv_size();
  const int inner = c.intermediate_size;
  const int64_t attention = (q + 2 * kv + 2) * hidden + (q + 1) * hidden;
  const int64_t rest = c.num_experts * (hidden + 1) + experts * (2 * int64_t{inner} + hidden);
  const int64_t packed = packed_bytes(experts, 2 * inner, c.hidden_size) +
                         packed_scale_bytes(experts, 2 * inner, c.hidden_size) +
                         packed_bytes(experts, c.hidden_size, inner) +
                         packed_scale_bytes(experts, c.hidden_size, inner);
  return (2 * int64_t{c.vocab_size} + 1) * hidden * 2 +
         c.num_hidden_layers * ((attention + rest) * 2 + packed);
}

Model load_model(const ModelConfig& config, int experts, WeightSource& source,
                 const Stream& stream) {
  const int64_t free = free_device_bytes();
  try {
    return read(config, experts, source, stream);
  } catch (const OutOfMemory& error) {
    ModelConfig none = config;
    none.num_hidden_layers = 0;
    const int64_t all = model_bytes(config, experts), rest = model_bytes(none, experts);
    const int64_t layers = (free - rest) * config.num_hidden_layers / (all - rest);
    throw Error(
        format("{}. The model's weights need {} bytes, {} were free: {} of its {} layers "
               "would fit",
               error.what(), all, free, layers > 0 ? layers : 0, config.num_hidden_layers));
  }
}

}  // namespace gptoss::cuda
