#include "core/cpu/kv_pool.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "core/dtype.h"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

namespace gptoss::cpu {

KvPool::KvPool(const ModelConfig& config, KvStorage storage)
    : head_dim_(config.head_dim),
      kv_heads_(config.num_key_value_heads),
      part_bytes_(kv_part_bytes(storage, config.head_dim)),
      storage_(storage) {
  // A page serves either group, so it has room for the larger of the two (they differ by one layer
  // at most).
  const int64_t layers = (config.num_hidden_layers + 1) / 2;
  page_bytes_ = layers * 2 * kv_heads_ * part_bytes_;
}

void KvPool::Free::operator()(uint8_t* p) const { std::free(p); }

void KvPool::alloc(int64_t pages) {
  GPTOSS_CHECK(pages_ == 0, "the KV pool is already allocated ({} pages)", pages_);
  GPTOSS_CHECK(pages > 0 && pages < (int64_t{1} << 31), "KV pages must lie in 1..2^31, found {}",
               pages);
  // Attention jumps from page to page: large pages of the system save it a look-up at each.
  constexpr int64_t large = 2 << 20;
  const int64_t alignment = pages * page_bytes_ >= large ? large : 64;
  const int64_t bytes = (pages * page_bytes_ + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<uint8_t*>(
      std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(bytes))));
  GPTOSS_CHECK(data_ != nullptr, "cannot allocate {} bytes for {} KV pages", bytes, pages);
#ifdef MADV_HUGEPAGE
  madvise(data_.get(), static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a hint: failing is harmless
#endif
  pages_ = pages;
}

uint8_t* KvPool::base(int layer, int kv_head, KvPart part) const {
  const int64_t index = (layer / 2) * 2 + static_cast<int>(part);
  return data_.get() + (index * kv_heads_ + kv_head) * part_bytes_;
}

void KvPool::store(int layer, int kv_head, KvPart part, int64_t slot, const float* from) const {
  uint8_t* to = base(layer, kv_head, part) + slot / page_size * page_bytes_;
  const int64_t place = slot % page_size;
  const int64_t first = part == KvPart::value ? place * head_dim_ : place;
  const int64_t step = part == KvPart::value ? 1 : page_size;
  const auto put = [&](int64_t d, auto element) {
    std::memcpy(to + (first + d * step) * static_cast<int64_t>(sizeof element), &element,
                sizeof element);
  };
  switch (storage_) {
    case KvStorage::f32:
      for (int64_t d = 0; d < head_dim_; ++d) {
        put(d, from[d]);
      }
      break;
    case KvStorage::bf16:
      for (int64_t d = 0; d < head_dim_; ++d) {
        put(d, to_bf16(from[d]));
      }
      break;
    case KvStorage::int8: {
      float largest = 0.0f;
      bool finite = true;
      for (int64_t d = 0; d < head_dim_; ++d) {
        finite = finite && std::isfinite(from[d]);
        largest = std::max(largest, std::fabs(from[d]));
      }
      // What is not finite stays visible: the whole vector becomes NaN.
      const float scale = finite ? largest / 127.0f : NAN;
      const float inverse = finite && scale > 0.0f ? 1.0f / scale : 0.0f;
      for (int64_t d = 0; d < head_dim_; ++d) {
        const float q = finite ? std::clamp(std::nearbyint(from[d] * inverse), -127.0f, 127.0f) : 0;
        put(d, static_cast<int8_t>(q));
      }
      std::memcpy(to + page_size * head_dim_ + place * 4, &scale, sizeof scale);
      break;
    }
  }
}

}  // namespace gptoss::cpu
