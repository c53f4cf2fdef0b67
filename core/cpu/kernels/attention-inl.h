// Attention in portable vectors.
//
// A tile of query tokens with their group of heads walks over one KV head's pages. A page is
// widened to float32 once for all rows of the tile (a row: one token's one head), so each byte of K
// and V is read from memory once. Lanes are keys in the first product and elements of the head in
// the second. Softmax is online (Milakov and Gimelshein 2018), a page at a time, and a row's
// operations are the same in every tile: results do not depend on how tokens were put into tiles.
#pragma once

#include <math.h>
#include <string.h>

#include "core/batch.h"
#include "core/cpu/kernels/table.h"
#include "core/cpu/kernels/vector_math-inl.h"
#include "core/cpu/kernels/vectors-inl.h"

namespace gptoss::cpu {
namespace {

static_assert(page_size == wide, "a vector of lanes is a page of keys");
constexpr int heads_at_once = parts == 1 ? 8 : 4;  // as many as registers hold

// A number of heads as a type.
template <int n>
struct Heads {
  static constexpr int count = n;
};

// One page of K (head_dim, page_size) and V (page_size, head_dim) as float32.
struct WidePage {
  float* k;
  float* v;
};

// Codes or numbers → float32; `n` is a multiple of sixteen, as a page has sixteen rows.
template <class T>
GPTOSS_INLINE void widen_row(const uint8_t* from, int64_t n, float* __restrict to) {
  const T* __restrict values = reinterpret_cast<const T*>(from);
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (sizeof(T) == sizeof(bf16)) {
      to[i] = to_float(values[i]);
    } else {
      to[i] = static_cast<float>(values[i]);
    }
  }
}

GPTOSS_INLINE void widen_page(const AttentionArgs& a, int32_t page, const WidePage& to) {
  const int64_t n = page_size * a.head_dim;
  const uint8_t* k = a.k + page * a.page_stride;
  const uint8_t* v = a.v + page * a.page_stride;
  if (a.storage == KvStorage::f32) {
    memcpy(to.k, k, static_cast<size_t>(n) * sizeof(float));
    memcpy(to.v, v, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  if (a.storage == KvStorage::bf16) {
    widen_row<bf16>(k, n, to.k);
    widen_row<bf16>(v, n, to.v);
    return;
  }
  float scale[page_size];
  memcpy(scale, k + n, sizeof scale);
  widen_row<int8_t>(k, n, to.k);
  const Wide of_keys = wide_load(scale);
  for (int64_t i = 0; i < n; i += wide) {
    Wide numbers = wide_load(to.k + i);
    for (int part = 0; part < parts; ++part) {
      numbers.part[part] *= of_keys.part[part];
    }
    wide_store(to.k + i, numbers);
  }
  memcpy(scale, v + n, sizeof scale);
  widen_row<int8_t>(v, n, to.v);
  for (int j = 0; j < page_size; ++j) {
    float* row = to.v + j * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; ++d) {
      row[d] *= scale[j];
    }
  }
}

// Running softmax of R rows: largest logit so far, and Σ exp(logit − max) in a lane per key place.
struct SoftmaxState {
  float* max;  // (rows)
  float* sum;  // (rows, page_size)
};

// One page's logits of a row → weights relative to the row's largest logit so far; what was summed
// up under a smaller one shrinks.
GPTOSS_INLINE void softmax_page(const Wide& dot, const Wide& place, float begin, float end,
                                float scale, float* weight, float* max, float* sum, float* out,
                                int64_t head_dim) {
  const Floats nothing = splat(-INFINITY), first = splat(begin), past = splat(end);
  Wide logit;
  for (int i = 0; i < parts; ++i) {
    const Floats scaled = dot.part[i] * splat(scale);
    const Floats begun = place.part[i] < first ? nothing : scaled;
    logit.part[i] = place.part[i] < past ? begun : nothing;
  }
  const float largest = wide_max(logit);
  if (largest > *max) {
    const float shrink = exp_f32(*max - largest);
    for (int j = 0; j < page_size; ++j) {
      sum[j] *= shrink;
    }
    for (int64_t d = 0; d < head_dim; ++d) {
      out[d] *= shrink;
    }
    *max = largest;
  }
  Wide total = wide_load(sum);
  for (int i = 0; i < parts; ++i) {
    logit.part[i] = exp_lanes(logit.part[i] - splat(*max));
    total.part[i] += logit.part[i];
  }
  wide_store(weight, logit);
  wide_store(sum, total);
}

// out[r] += Σ_j weight[r][j] · v[j] for the visible keys.
template <int R>
GPTOSS_INLINE void add_values(const float (*weight)[page_size], const float* v, int begin, int end,
                              int64_t head_dim, float* const* out) {
  int64_t d = 0;
  for (; d + wide <= head_dim; d += wide) {
    Wide sum[R];
    for (int r = 0; r < R; ++r) {
      sum[r] = wide_load(out[r] + d);
    }
    for (int j = begin; j < end; ++j) {
      const Wide value = wide_load(v + j * head_dim + d);
      for (int r = 0; r < R; ++r) {
        wide_add_product(sum[r], value, wide_splat(weight[r][j]));
      }
    }
    for (int r = 0; r < R; ++r) {
      wide_store(out[r] + d, sum[r]);
    }
  }
  for (; d < head_dim; ++d) {
    for (int r = 0; r < R; ++r) {
      for (int j = begin; j < end; ++j) {
        out[r][d] += weight[r][j] * v[j * head_dim + d];
      }
    }
  }
}

// R heads of one token against the visible keys [begin, end) of a page.
template <int R>
GPTOSS_INLINE void attend_page(const AttentionArgs& a, const WidePage& page, int begin, int end,
                               const float* q, float* out, float* max, float* sum) {
  Wide dot[R];
  for (int r = 0; r < R; ++r) {
    dot[r] = wide_zero();
  }
  for (int64_t d = 0; d < a.head_dim; ++d) {
    const Wide keys = wide_load(page.k + d * page_size);
    for (int r = 0; r < R; ++r) {
      wide_add_product(dot[r], keys, wide_splat(q[r * a.head_dim + d]));
    }
  }
  alignas(64) static constexpr float places[page_size] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                          8, 9, 10, 11, 12, 13, 14, 15};
  const Wide place = wide_load(places);
  alignas(64) float weight[R][page_size];
  float* rows[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = out + r * a.head_dim;
    softmax_page(dot[r], place, static_cast<float>(begin), static_cast<float>(end), a.scale,
                 weight[r], max + r, sum + r * page_size, rows[r], a.head_dim);
  }
  add_values<R>(weight, page.v, begin, end, a.head_dim, rows);
}

// A page lies anywhere, so that the hardware cannot know the next one.
GPTOSS_INLINE void prefetch_page(const AttentionArgs& a, int32_t page) {
  const int64_t bytes = kv_part_bytes(a.storage, a.head_dim);
  const uint8_t* k = a.k + page * a.page_stride;
  const uint8_t* v = a.v + page * a.page_stride;
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(k + i);
    __builtin_prefetch(v + i);
  }
}

GPTOSS_INLINE int64_t first_key(const AttentionArgs& a, int64_t position) {
  return position >= a.window ? position - a.window + 1 : 0;
}

void attention(const AttentionArgs& a) {
  const int64_t n = page_size * a.head_dim;
  const WidePage page{a.scratch, a.scratch + n};
  const SoftmaxState state{a.scratch + 2 * n, a.scratch + 2 * n + a.tokens * a.group};
  for (int64_t t = 0; t < a.tokens; ++t) {
    memset(a.out + t * a.out_stride, 0, static_cast<size_t>(a.group * a.head_dim) * sizeof(float));
    for (int64_t g = 0; g < a.group; ++g) {
      // The sink: a key of this logit, whose weight counts and whose value does not.
      const int64_t row = t * a.group + g;
      state.max[row] = to_float(a.sinks[g]);
      memset(state.sum + row * page_size, 0, page_size * sizeof(float));
      state.sum[row * page_size] = 1.0f;
    }
  }
  const int64_t last_block = (a.position + a.tokens - 1) / page_size;
  for (int64_t block = first_key(a, a.position) / page_size; block <= last_block; ++block) {
    widen_page(a, a.pages[block], page);
    if (block < last_block) {
      prefetch_page(a, a.pages[block + 1]);
    }
    const int64_t origin = block * page_size;
    for (int64_t t = 0; t < a.tokens; ++t) {
      const int64_t position = a.position + t;
      const int64_t first = first_key(a, position);
      if (position < origin || first >= origin + page_size) {
        continue;
      }
      const int begin = static_cast<int>(first > origin ? first - origin : 0);
      const int end =
          static_cast<int>(position - origin + 1 < page_size ? position - origin + 1 : page_size);
      int64_t g = 0;
      const auto attend = [&](auto heads) {
        const int64_t row = t * a.group + g;
        attend_page<decltype(heads)::count>(a, page, begin, end,
                                            a.q + t * a.q_stride + g * a.head_dim,
                                            a.out + t * a.out_stride + g * a.head_dim,
                                            state.max + row, state.sum + row * page_size);
        g += decltype(heads)::count;
      };
      while (g + heads_at_once <= a.group) {
        attend(Heads<heads_at_once>{});
      }
      while (g < a.group) {
        attend(Heads<1>{});
      }
    }
  }
  for (int64_t t = 0; t < a.tokens; ++t) {
    for (int64_t g = 0; g < a.group; ++g) {
      const float factor = 1.0f / wide_sum(wide_load(state.sum + (t * a.group + g) * page_size));
      float* out = a.out + t * a.out_stride + g * a.head_dim;
      for (int64_t d = 0; d < a.head_dim; ++d) {
        out[d] *= factor;
      }
    }
  }
}

}  // namespace
}  // namespace gptoss::cpu
