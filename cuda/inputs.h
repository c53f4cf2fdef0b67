// What a step needs to know, in one block that is copied to the device at once.
#pragma once

#include <algorithm>
#include <vector>

#include "core/batch.h"
#include "cuda/runtime.h"

namespace gptoss::cuda {

struct StepInputs {
  const int32_t *token_ids = nullptr, *position = nullptr, *sequence = nullptr;  // (T)
  const int32_t* slots[kv_groups] = {};                                          // (T)
  const int32_t* block_table[kv_groups] = {};                                    // (S, max_blocks)
  const int32_t* logits_rows = nullptr;                                          // (R)
  const int32_t* decode_tiles = nullptr;  // (…, 2) first token, count
  const int32_t* prefill_tiles = nullptr;
};

// What a captured graph depends on.
struct StepShape {
  int tokens = 0, decode_tiles = 0, prefill_tiles = 0;
  int max_blocks = 0;  // rounded up to a power of two: it changes seldom
};

class InputBuffers {
public:
  // tile: tokens of one sequence that attention_prefill takes at once; 0: no tiles are wanted.
  StepShape upload(const Batch& batch, const TokenIndex& index, int tile, const Stream& stream) {
    StepShape shape;
    shape.tokens = batch.num_tokens;
    shape.max_blocks = 16;
    while (shape.max_blocks < batch.max_blocks) {
      shape.max_blocks *= 2;
    }
    decode_.clear();
    prefill_.clear();
    for (int s = 0; s < batch.num_sequences && tile > 0; ++s) {
      const int begin = batch.seq_start[s], end = batch.seq_start[s + 1];
      if (end - begin == 1) {
        decode_.insert(decode_.end(), {begin, 1});
      }
      for (int first = begin; end - begin > 1 && first < end; first += tile) {
        prefill_.insert(prefill_.end(), {first, std::min(tile, end - first)});
      }
    }
    shape.decode_tiles = static_cast<int>(decode_.size() / 2);
    shape.prefill_tiles = static_cast<int>(prefill_.size() / 2);

    const auto tokens = static_cast<size_t>(batch.num_tokens);
    const size_t table =
        static_cast<size_t>(batch.num_sequences) * static_cast<size_t>(shape.max_blocks);
    reserve(tokens * (3 + kv_groups) + table * kv_groups + static_cast<size_t>(batch.num_rows) +
                decode_.size() + prefill_.size() + 16 * arrays,
            stream);
    taken_.wait();  // the last step's copy
    end_ = 0;
    on_device_.token_ids = add(batch.token_ids, tokens);
    on_device_.position = add(index.position.data(), tokens);
    on_device_.sequence = add(index.sequence.data(), tokens);
    for (int group = 0; group < kv_groups; ++group) {
      add_table(batch, index, group, shape.max_blocks);
    }
    on_device_.logits_rows = add(batch.logits_rows, static_cast<size_t>(batch.num_rows));
    on_device_.decode_tiles = add(decode_.data(), decode_.size());
    on_device_.prefill_tiles = add(prefill_.data(), prefill_.size());
    copy_async_to(device_.as<int32_t>(), host_.as<int32_t>(), end_ * sizeof(int32_t), stream);
    taken_.record(stream);
    return shape;
  }

  const StepInputs& on_device() const { return on_device_; }
  // Changes whenever the block moves.
  int64_t generation() const { return generation_; }

private:
  static constexpr size_t arrays = 4 + 2 * kv_groups + 2;

  void reserve(size_t count, const Stream& stream) {
    const size_t bytes = count * sizeof(int32_t);
    if (bytes > device_.bytes()) {
      synchronize(stream);
      const size_t grown = std::max(bytes, device_.bytes() * 3 / 2);
      host_ = PinnedMemory(grown);  // first: device_ says how large both are
      device_ = DeviceMemory();
      device_ = DeviceMemory(grown);
      ++generation_;
    }
  }

  int32_t* host(size_t count) {
    int32_t* at = host_.as<int32_t>() + end_;
    end_ += (count + 15) / 16 * 16;  // arrays begin at 64 bytes
    return at;
  }

  const int32_t* add(const int32_t* values, size_t count) {
    int32_t* to = host(count);
    std::copy(values, values + count, to);
    return device_.as<int32_t>() + (to - host_.as<int32_t>());
  }

  void add_table(const Batch& batch, const TokenIndex& index, int group, int max_blocks) {
    const int32_t* table = batch.block_table[group];
    const auto width = static_cast<size_t>(max_blocks);
    const auto used = static_cast<size_t>(batch.max_blocks);
    const auto sequences = static_cast<size_t>(batch.num_sequences);
    int32_t* slots = host(index.position.size());
    for (size_t t = 0; t < index.position.size(); ++t) {
      const int32_t position = index.position[t];
      const int64_t block = int64_t{index.sequence[t]} * batch.max_blocks + position / page_size;
      slots[t] = table[block] * page_size + position % page_size;
    }
    int32_t* to = host(sequences * width);
    for (size_t s = 0; s < sequences; ++s) {
      std::copy(table + s * used, table + (s + 1) * used, to + s * width);
      std::fill(to + s * width + used, to + (s + 1) * width, -1);
    }
    const int32_t* base = device_.as<int32_t>();
    on_device_.slots[group] = base + (slots - host_.as<int32_t>());
    on_device_.block_table[group] = base + (to - host_.as<int32_t>());
  }

  DeviceMemory device_;
  PinnedMemory host_;
  Event taken_;
  StepInputs on_device_;
  std::vector<int32_t> decode_, prefill_;
  size_t end_ = 0;
  int64_t generation_ = 0;
};

}  // namespace gptoss::cuda
