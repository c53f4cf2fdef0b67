// Every CUDA kernel: what it computes, shapes, bytes moved. Pointers are the device's.
#pragma once

#include "runtime.h"

namespace gptoss::cuda {

// y = x · wᵀ + bias, float32 sums. Bound: 2 · m · n · k operations, or the bytes of w for few rows.
struct GemmArgs {
  const bf16* x;     // (m, k), rows x_stride apart
  const bf16* w;     // (n, k)
  const bf16* bias;  // (n), or null
  float* y;          // (m, n), rows y_stride apart
  int m, n, k;       // k a multiple of 8; rows of x and w are 16-byte aligned
  int x_stride, y_stride;
  bool add;  // y += instead of y =
};
void gemm_bf16(const GemmArgs& args, Stream stream);  // tensor cores, any m
void gemv_bf16(const GemmArgs& args, Stream stream);  // m ≤ gemv_rows: w streams once
constexpr int gemv_rows = 4;

// Products of the experts on the pairs (token, expert) that chose them, sorted by expert. Bound:
// the bytes of the chosen experts, 17 / 32 a weight, or 2 · pairs · n · k operations.
struct ExpertArgs {
  const bf16* x;               // rows of k
  const int32_t* pair_of_row;  // (pairs) row of x: pair_of_row[i] / pairs_a_row; null: row i
  int pairs_a_row;
  const int32_t* start;   // (experts + 1) each expert's first pair
  const uint8_t* blocks;  // (experts, n, k / 32, 16)
  const uint8_t* scales;  // (experts, n, k / 32)
  const bf16* bias;       // (experts, n)
  int pairs, experts, n, k;
};
// h (pairs, n / 2) = swiglu(x · wᵀ + bias) rounded to bf16; gate and up alternate (SPEC "Forward"
// 4).
void expert_gate_up(const ExpertArgs& args, float limit, bf16* h, Stream stream);
// y (pairs, n) = x · wᵀ + bias
void expert_down(const ExpertArgs& args, float* y, Stream stream);

// y = x / √(mean x² + eps) · scale, rounded to bf16. Bound: 6 · rows · n bytes.
struct NormArgs {
  const float* x;     // (…, n)
  const bf16* scale;  // (n)
  bf16* y;            // (rows, n)
  int rows, n;
  float eps;
  const int32_t* row_ids = nullptr;  // (rows) row of x; null: as they come
  float* unrounded = nullptr;        // (rows, n) also y before rounding, unless null
};
void rms_norm(const NormArgs& args, Stream stream);

// MXFP4 blocks → bf16, exact (a product that leaves bf16's range becomes a subnormal, zero or
// infinity, as rounding to nearest has it). Bound: 17 + 64 bytes a block of 32.
struct UnpackArgs {
  const uint8_t* blocks;  // (count, 16)
  const uint8_t* scales;  // (count) e8m0
  bf16* to;               // (count, 32)
  int64_t count;
};
void unpack_mxfp4(const UnpackArgs& args, Stream stream);

// The `chosen` largest of each row of logits, ties to the lowest index, and their softmax over
// those alone (SPEC "Forward" 4).
struct RouteArgs {
  const float* logits;        // (rows, experts)
  int32_t* ids;               // (rows, chosen)
  float* weights;             // (rows, chosen)
  int rows, experts, chosen;  // experts ≤ 256, chosen ≤ 8
};
void route(const RouteArgs& args, Stream stream);

// logits (rows, experts) = t · wᵀ + bias with t in float32: which experts are chosen is
// discontinuous.
struct GateArgs {
  const float* t;  // (rows, n)
  const bf16* w;   // (experts, n)
  const bf16* bias;
  float* logits;
  int rows, n, experts;
};
void gate(const GateArgs& args, Stream stream);

// Sorts pairs by the expert chosen, then by token: start, pair_of_row, and its inverse.
struct GroupArgs {
  const int32_t* ids;    // (pairs) the expert of pair token · chosen + rank
  int32_t* start;        // (experts + 1)
  int32_t* pair_of_row;  // (pairs)
  int32_t* row_of_pair;  // (pairs)
  int pairs, experts;    // experts ≤ 256
};
void group_by_expert(const GroupArgs& args, Stream stream);

// x (tokens, n) += Σ over ranks of weight · y, in the order of ranks.
struct CombineArgs {
  const float* y;              // (pairs, n), sorted by expert
  const int32_t* row_of_pair;  // (pairs)
  const float* weights;        // (tokens, chosen)
  float* x;
  int tokens, n, chosen;
};
void combine(const CombineArgs& args, Stream stream);

// x (tokens, n) = rows of the embedding.
struct EmbedArgs {
  const bf16* embedding;  // (vocabulary, n)
  const int32_t* ids;     // (tokens)
  float* x;
  int tokens, n;
};
void embed(const EmbedArgs& args, Stream stream);

// Where a layer's K and V lie: a page is (kv_heads, page_size, head_dim) of bf16 for K and then V.
struct KvPages {
  bf16* base;           // this layer's K in page 0
  int64_t page_stride;  // elements from page to page
  int kv_heads, head_dim;
};

// Rotates q in place and k, and stores k and v, rounded to bf16, at their slots.
struct RopeStoreArgs {
  float* q;        // (tokens, heads · head_dim)
  const float* k;  // (tokens, kv_heads · head_dim)
  const float* v;
  const float* cos;      // (tokens, head_dim / 2)
  const float* sin;      // (tokens, head_dim / 2)
  const int32_t* slots;  // (tokens) page · page_size + place
  KvPages kv;
  int tokens, heads;
};
void rope_and_store(const RopeStoreArgs& args, Stream stream);

// Attention with sinks over paged keys and values; the last `window` keys or all. out in bf16.
// Bound: 4 · page_size · head_dim bytes a page and KV head.
struct AttentionArgs {
  const float* q;           // (tokens, heads · head_dim)
  const bf16* sinks;        // (heads)
  bf16* out;                // (tokens, heads · head_dim)
  const int32_t* pages;     // (sequences, max_blocks)
  const int32_t* sequence;  // (tokens)
  const int32_t* position;  // (tokens)
  KvPages kv;
  int tokens, heads, max_blocks;
  int window;  // keys that a query sees, at most
  float scale;
};
void attention(const AttentionArgs& args, Stream stream);

}  // namespace gptoss::cuda
