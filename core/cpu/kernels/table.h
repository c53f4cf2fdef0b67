// Every CPU kernel: what it computes, on which shapes, and the bytes it moves. A kernel runs on one
// thread and does one thread's share; backend.cpp, attention.cpp and moe.cpp split the work. Each
// instruction set provides all of them as one table.
//
// Every sum is formed in an order that depends on its own row alone: a result does not change with
// the number of rows, of threads, or with what else is in the batch.
#pragma once

#include <cstdint>

#include "core/batch.h"
#include "core/cpu/isa.h"
#include "core/cpu/panels.h"
#include "core/dtype.h"

namespace gptoss::cpu {

// y = x / sqrt(mean(x²) + eps) · scale (Zhang and Sennrich 2019), for one row.
struct RmsNormArgs {
  const float* x;     // (n)
  const bf16* scale;  // (n)
  float* y;           // (n)
  int64_t n;
  float eps;
};

// Rotates pairs (i, i + half) of each head by the position's angles (Su et al. 2021, half-split).
struct RopeArgs {
  float* x;          // (heads, 2 · half), in place
  const float* cos;  // (half)
  const float* sin;  // (half)
  int64_t heads;
  int64_t half;
};

// How elements of K and V are stored. int8: symmetric, with a float32 scale for each token's K and
// for its V in each KV head.
enum class KvStorage : int { f32 = 0, bf16 = 1, int8 = 2 };

// Bytes of one KV head's K (or V) in a page.
GPTOSS_INLINE int64_t kv_part_bytes(KvStorage storage, int64_t head_dim) {
  const int64_t elements = page_size * head_dim;
  return storage == KvStorage::f32    ? elements * 4
         : storage == KvStorage::bf16 ? elements * 2
                                      : elements + page_size * 4;
}

// A tile of consecutive query tokens of one sequence and one KV head: the group's query heads
// attend to the keys that each token sees, in paged K and V (core/cpu/kv_pool.h), with a sink logit
// per head as an extra softmax column that has no value (Xiao et al. 2023; docs/spec.md,
// "Attention"). Reads each K and V byte once.
struct AttentionArgs {
  const float* q;  // (tokens, group, head_dim), tokens q_stride apart
  int64_t q_stride;
  float* out;  // (tokens, group, head_dim), tokens out_stride apart
  int64_t out_stride;
  const bf16* sinks;  // (group)
  int64_t tokens;     // at most attention_tokens
  int64_t group;
  int64_t head_dim;
  float scale;           // 1 / sqrt(head_dim)
  const int32_t* pages;  // (·) page of each logical block of page_size positions
  int64_t position;      // of the first token
  int64_t window;        // keys that a token sees, itself included
  const uint8_t* k;      // K of this layer and KV head in page 0
  const uint8_t* v;      // V likewise
  int64_t page_stride;   // bytes from one page to the next
  KvStorage storage;
  float* scratch;  // (attention_scratch) of this thread
};
constexpr int64_t attention_tokens = 8;
GPTOSS_INLINE int64_t attention_scratch(int64_t group, int64_t head_dim) {
  return 2 * page_size * head_dim + attention_tokens * group * (1 + page_size);
}

// h[i] = glu · sigmoid(1.702 glu) · (linear + 1), glu = min(u[2i], limit),
// linear = clamp(u[2i + 1], −limit, limit), for i in [begin, end) of one row. (docs/spec.md,
// "Router and experts")
struct SwigluArgs {
  const float* u;  // (2 n)
  float* h;        // (n)
  int64_t begin, end;
  float limit;
  bool round;  // round h to bf16
};

// ---- Products with weights in panels (core/cpu/panels.h) ----

// f32: float32 operand and products; any format of weights, exactly widened.
// i16: int16 operand, integer products and sums within a block, exact; float32 across blocks. mxfp4
//   and q8 only.
// bf16: bf16 operand in tiles, for many rows. Weights become bf16 in cache first: mxfp4 exactly (as
//   in unpack_mxfp4), q8 rounded to bf16 once.
enum class Product : int { f32 = 0, i16 = 1, bf16 = 2 };
constexpr int products = 3;

constexpr int64_t operand_tile_rows = 16;  // of a bf16 operand's tile; it has panel_block columns

// Rows of activations in the form that a product takes; there may be several forms of the same.
struct Operand {
  Product product = Product::f32;
  int64_t rows = 0, cols = 0;
  const float* x = nullptr;        // f32: (·, panel_cols(cols)), zeros from cols on
  const int16_t* q = nullptr;      // i16: (·, panel_cols(cols))
  const float* q_scale = nullptr;  // i16: (·, panel_blocks(cols))
  const bf16* tiles = nullptr;  // bf16: (ceil(rows / 16), panel_blocks(cols), 16, 32), zeros past
                                // rows and cols
};

// y[i, n] = Σ_k x[row(i), k] · w[n, k] + bias[n] for the rows n of panels [begin, end), n < w.rows.
// Reads each weight byte once from memory; the number of rows changes no result.
struct MatmulArgs {
  Operand x;
  int64_t first_row = 0;             // row(i) = first_row + i; bf16: a multiple of 16
  const int32_t* row_ids = nullptr;  // (rows) or row(i) = row_ids[i]; not for bf16
  int64_t rows = 0;
  Panels w;
  int64_t begin = 0, end = 0;  // panels
  float* y = nullptr;          // (rows, w.rows), rows y_stride apart
  int64_t y_stride = 0;
  uint8_t* scratch = nullptr;  // (matmul_scratch) of this thread; not for f32

  GPTOSS_INLINE int64_t row(int64_t i) const {
    return row_ids != nullptr ? row_ids[i] : first_row + i;
  }
};

// Bytes of scratch that a thread lends to the products, 64-byte aligned: part of the second-level
// cache.
constexpr int64_t matmul_scratch = int64_t{256} << 10;

// A row of activations in blocks of 32, int16 each, with a power of two as the block's scale:
// x[k] = q[k] · scale[k / 32]. The scale is the smallest with |q| ≤ 32767, so the error is at most
// 2^-16 of the block's largest magnitude, and bf16 values within a factor of 2^7 of it are exact.
// A NaN or an infinity makes the block's scale NaN.
struct QuantizeArgs {
  const float* x;  // (n)
  int64_t n;
  int16_t* q;    // (panel_cols(n)), zeros from n on
  float* scale;  // (panel_blocks(n))
};

// One row of float32 → its place in bf16 tiles: 32 elements, then 16 · 32 further on the next 32.
// Rounds to nearest even; zeros from n to panel_cols(n).
struct TileRowArgs {
  const float* x;  // (n)
  int64_t n;
  bf16* tile_row;  // row r of tile 0: base + (r / 16) · 16 · panel_cols(n) + (r % 16) · 32
};

struct Kernels {
  Isa isa;
  void (*matmul[products])(const MatmulArgs&);  // by Product; null: this instruction set has none
  void (*quantize)(const QuantizeArgs&);
  void (*to_tile_row)(const TileRowArgs&);
  // From how many operand rows on the bf16 product is the fastest, by WeightFormat; below, i16 is
  // where there is one and the format has scales, and f32 where not.
  int64_t min_rows_bf16[weight_formats];
  bool (*bf16_is_fast)();  // avx512_bf16 only: measured once, in some microseconds
  void (*rms_norm)(const RmsNormArgs&);
  void (*rope)(const RopeArgs&);
  void (*attention)(const AttentionArgs&);
  void (*swiglu)(const SwigluArgs&);
  // to[i] = bf16(from[i]), round to nearest even
  void (*to_bf16)(const float* from, bf16* to, int64_t n);
  // x[i] = float32(bf16(x[i])), in place
  void (*round_bf16)(float* x, int64_t n);
  // y[i] += a · x[i]
  void (*add_scaled)(float* y, const float* x, float a, int64_t n);

  // Null: this instruction set has none.
  GPTOSS_INLINE auto matmul_of(Product product) const { return matmul[static_cast<int>(product)]; }
};

extern const Kernels kernels_generic;
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_vnni;
extern const Kernels kernels_avx512_bf16;
extern const Kernels kernels_amx;
extern const Kernels kernels_amx_emulated;

}  // namespace gptoss::cpu
