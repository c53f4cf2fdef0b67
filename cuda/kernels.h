// Every CUDA kernel: what it computes, shapes, bytes moved. Pointers are the device's. Throw Error
// for shapes that they do not take, and when a launch fails.
#pragma once

#include "core/batch.h"
#include "cuda/runtime.h"

namespace gptoss::cuda {

// --- Products with dense matrices ---

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
void gemv_bf16(const GemmArgs& args, const Stream& stream);    // up to 16 rows: w streams once
void gemm_bf16(const GemmArgs& args, const Stream& stream);    // mma.sync, any m, sm_80 and later
void gemm_hopper(const GemmArgs& args, const Stream& stream);  // TMA and wgmma, sm_90a

// Throws Error, naming the kernel, for sizes that none of them takes.
void check_product(const char* kernel, const GemmArgs& args);

// --- Experts ---

// MXFP4 in the published layout → layout.h's. Once, when a model is loaded. Bound: 17 bytes in and
// out for 32 weights.
struct PackArgs {
  const uint8_t* blocks;   // (experts, rows, columns / 32, 16)
  const uint8_t* scales;   // (experts, rows, columns / 32)
  uint8_t* codes;          // packed_bytes
  uint8_t* packed_scales;  // packed_scale_bytes
  int experts, rows, columns;
  bool paired;  // gate and up: source_row() in layout.h
};
void pack_experts(const PackArgs& args, const Stream& stream);
int64_t packed_bytes(int experts, int rows, int columns);
int64_t packed_scale_bytes(int experts, int rows, int columns);

// MXFP4 blocks → bf16, exact (a product that leaves bf16's range becomes a subnormal, zero or
// infinity, as rounding to nearest has it). Bound: 17 + 64 bytes a block of 32.
struct UnpackArgs {
  const uint8_t* blocks;  // (count, 16)
  const uint8_t* scales;  // (count) e8m0
  bf16* to;               // (count, 32)
  int64_t count;
};
void unpack_mxfp4(const UnpackArgs& args, const Stream& stream);

// Products of the experts with the pairs (token, expert) that chose them, sorted by expert; then
// either bias and swiglu to h, or bias to y (docs/spec.md, "Router and experts"). Bound: the bytes
// of the chosen experts, 17 / 32 a weight, or 2 · pairs · n · k operations.
struct ExpertArgs {
  const bf16* x;               // rows of k
  const int32_t* pair_of_row;  // (pairs) row of x: pair_of_row[i] / pairs_a_row; null: row i
  int pairs_a_row;
  const int32_t* start;   // (experts + 1) each expert's first pair
  const int32_t* active;  // (1 + experts) how many experts have pairs, and which
  const uint8_t* codes;   // (experts, n, k) packed; as gate and up where h is wanted
  const uint8_t* scales;
  const bf16* bias;          // (experts, n), as published
  int pairs, experts, n, k;  // n a multiple of 16, k of 32; pairs: an upper bound
  float limit;               // swiglu's
  bf16* h;                   // (pairs, n / 2) or null
  float* y;                  // (pairs, n) or null
};
void experts_few(const ExpertArgs& args, const Stream& stream);     // few pairs an expert
void experts_tiles(const ExpertArgs& args, const Stream& stream);   // many, mma.sync
void experts_hopper(const ExpertArgs& args, const Stream& stream);  // many, wgmma, sm_90a
void experts(const ExpertArgs& args, const Stream& stream);         // the one that suits

// Sorts pairs by expert, then by token. Those of experts outside first_expert … + experts have
// row_of_pair −1 and no row.
struct GroupArgs {
  const int32_t* ids;                // (pairs) the expert of pair token · chosen + rank
  int32_t* start;                    // (experts + 1)
  int32_t* active;                   // (1 + experts)
  int32_t* pair_of_row;              // (pairs)
  int32_t* row_of_pair;              // (pairs)
  int pairs, experts, first_expert;  // experts ≤ 256
};
void group_by_expert(const GroupArgs& args, const Stream& stream);

// y (tokens, n) = Σ over ranks of weight · expert_out, in the order of ranks.
struct CombineArgs {
  const float* expert_out;     // (pairs, n), sorted by expert
  const int32_t* row_of_pair;  // (pairs), −1: none
  const float* weights;        // (tokens, chosen)
  float* y;
  int tokens, n, chosen;
};
void combine(const CombineArgs& args, const Stream& stream);

// --- The residual stream ---

// x (rows, n), and what is still to be added: partial (rows, n), and Σ over ranks of weight ·
// expert_out.
struct Residual {
  float* x;
  const float* partial = nullptr;
  const float* expert_out = nullptr;
  const int32_t* row_of_pair = nullptr;
  const float* weights = nullptr;
  int chosen = 0;
  bool store = false;  // writes the sum to x
};

// y = x / √(mean x² + eps) · scale, rounded to bf16. Bound: 6 · rows · n bytes, and 4 · chosen · n
// a row.
struct NormArgs {
  Residual residual;
  const bf16* scale;  // (n)
  bf16* y;            // (rows, n); null: only the residual stream is wanted
  int rows, n;
  float eps;
  const int32_t* row_ids;  // (rows) row of x; null: as they come
};
void rms_norm(const NormArgs& args, const Stream& stream);

// t = the same norm; logits = norm before rounding · wᵀ + bias in float32 (which experts are chosen
// is discontinuous); the `chosen` largest, ties to the lowest index, and their softmax over those
// alone (docs/spec.md, "Router and experts"). Bound: w's bytes, or 2 · rows · n · experts
// operations.
struct RouteArgs {
  Residual residual;
  const bf16* scale;             // (n)
  bf16* t;                       // (rows, n)
  const bf16* w;                 // (experts, n)
  const bf16* bias;              // (experts)
  int32_t* ids;                  // (rows, chosen)
  float* weights;                // (rows, chosen)
  int rows, n, experts, chosen;  // experts ≤ 256, chosen ≤ 8
  float eps;
  // Unless null, group_by_expert follows in the same launch; zero before it and after.
  int32_t* ended;
  GroupArgs group;
};
void route(const RouteArgs& args, const Stream& stream);

// x (tokens, n) = rows of the embedding.
struct EmbedArgs {
  const bf16* embedding;  // (vocabulary, n)
  const int32_t* ids;     // (tokens)
  float* x;
  int tokens, n;
};
void embed(const EmbedArgs& args, const Stream& stream);

// --- Attention ---

// Where a layer's K and V lie: a page is (kv_heads, page_size, head_dim) of bf16 for K and then V.
struct KvPages {
  bf16* base;           // this layer's K in page 0
  int64_t page_stride;  // elements from page to page
  int kv_heads, head_dim;
};

// cos and sin (tokens, half) of position · frequency, times YaRN's concentration.
struct RopeTablesArgs {
  const int32_t* position;    // (tokens)
  const double* frequencies;  // (half)
  double concentration;
  float* cos;
  float* sin;
  int tokens, half;
};
void rope_tables(const RopeTablesArgs& args, const Stream& stream);

// Adds the bias, rotates q and k, and stores q, and k and v in their slots, rounded to bf16.
struct RopeStoreArgs {
  const float* qkv;  // (tokens, (heads + 2 · kv_heads) · head_dim)
  const bf16* bias;  // ((heads + 2 · kv_heads) · head_dim)
  const float* cos;  // (tokens, head_dim / 2)
  const float* sin;
  const int32_t* slots;  // (tokens) page · page_size + place
  bf16* q;               // (tokens, heads · head_dim)
  KvPages kv;
  int tokens, heads;
};
void rope_and_store(const RopeStoreArgs& args, const Stream& stream);

// Attention with sinks over paged keys and values; the last `window` keys or all. Bound: 4 ·
// page_size · head_dim bytes a page and KV head, or 4 · head_dim operations a query, head and key.
struct AttentionArgs {
  const bf16* q;            // (all tokens, heads · head_dim)
  const bf16* sinks;        // (heads)
  bf16* out;                // (all tokens, heads · head_dim)
  const int32_t* pages;     // (sequences, max_blocks)
  const int32_t* sequence;  // (all tokens)
  const int32_t* position;  // (all tokens)
  KvPages kv;
  int tokens, heads, max_blocks;  // tokens: how many, or how many tiles
  int window;                     // keys that a query sees, at most
  float scale;
  const int32_t* tiles;  // (tokens, 2) first token and how many, of one sequence
  int splits;            // decode: blocks that share a token's keys
  float* parts;          // decode_part_floats
  int32_t* ended;        // (tokens, kv_heads) zero, and zero again afterwards
};
void attention_prefill(const AttentionArgs& args, const Stream& stream);  // tiles of some tokens
void attention_decode(const AttentionArgs& args, const Stream& stream);   // tiles of one token
void attention_any(const AttentionArgs& args, const Stream& stream);      // all tokens; any shape
bool has_attention(int group, int head_dim);                              // else attention_any
int prefill_tokens_a_tile(int group);
int64_t decode_part_floats(int tokens, int heads, int head_dim, int splits);

// --- Sampling ---

constexpr int max_sampled_logprobs = 64;  // that sample() reports
struct SampleRow {                        // mirrored by tests/cuda/test_sample.py
  float temperature, top_p, min_p;
  int32_t top_k;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t n_logprobs;
  double uniform;  // in [0, 1)
  // Entries of the lists below; none where they would change nothing.
  int32_t history_begin, history_end, bias_begin, bias_end;
  int32_t mask, unused;  // mask: which of the masks, or -1
};
enum SampleStatus : int32_t { sample_ok, sample_nan, sample_not_finite, sample_nothing_left };
struct SampleResult {
  int32_t token;  // sample_nan: where the NaN is
  float logprob;  // sample_not_finite: the largest logit
  int32_t status;
};
// As core/sampler.h. Bound: 4 · vocab bytes a row for each look at the logits: two, and five more
// for each of top-k and top-p.
struct SampleArgs {
  const float* logits;  // (rows, vocab)
  float* modified;      // (rows, vocab) scratch, where bias, penalties or masks are used
  const SampleRow* rows;
  const int32_t* history_ids;
  const int32_t* history_counts;
  const int32_t* bias_ids;
  const float* bias_values;
  const uint32_t* masks;  // (masks, mask_words(vocab))
  SampleResult* results;  // (rows)
  int32_t* top_ids;       // (rows, max_logprobs)
  float* top_logprobs;
  int row_count, vocab, max_logprobs;
};
void sample(const SampleArgs& args, const Stream& stream);

}  // namespace gptoss::cuda
