// Where keys and values live: pages of sixteen tokens, in one allocation for all layers.
#pragma once

#include <cstdint>
#include <memory>

#include "core/batch.h"
#include "core/config.h"
#include "core/cpu/kernels/table.h"

namespace gptoss::cpu {

inline const char* kv_storage_name(KvStorage storage) {
  return storage == KvStorage::f32 ? "f32" : storage == KvStorage::bf16 ? "bf16" : "int8";
}

enum class KvPart : int { key = 0, value = 1 };

// A page holds, for each layer of its group and each KV head, K and then V of page_size tokens:
//   K  (head_dim, page_size): lanes are keys, so that a query's logits need no horizontal sums
//   V  (page_size, head_dim)
// each followed by its (page_size) float32 scales where storage is int8.
class KvPool {
public:
  KvPool(const ModelConfig& config, KvStorage storage);

  int64_t page_bytes() const { return page_bytes_; }
  int64_t pages() const { return pages_; }
  KvStorage storage() const { return storage_; }
  void alloc(int64_t pages);

  // Address of K or V of this layer and KV head in page 0.
  uint8_t* base(int layer, int kv_head, KvPart part) const;
  // Stores one head's K or V (head_dim) of one token; slot = page · page_size + place.
  void store(int layer, int kv_head, KvPart part, int64_t slot, const float* from) const;

private:
  struct Free {
    void operator()(uint8_t* p) const;
  };
  int64_t head_dim_, kv_heads_, part_bytes_, page_bytes_;
  KvStorage storage_;
  int64_t pages_ = 0;
  std::unique_ptr<uint8_t, Free> data_;
};

}  // namespace gptoss::cpu
