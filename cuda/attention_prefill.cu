// attention_prefill: a block for 128 rows of queries (neighbouring tokens of a sequence × the
// heads of one group) and a KV head. Keys and values come in tiles of 64, two under way; all rows
// share them.
#include "cuda/attention_tile.cuh"

namespace gptoss::cuda {

namespace {

constexpr int warps = 8;
constexpr int threads = warps * warp_size;
constexpr int keys = 64;

template <int dim>
__global__ void __launch_bounds__(threads, 1) prefill_kernel(AttentionArgs a) {
  GPTOSS_SHARED(shared);
  constexpr int pieces = dim / 8, tile_bytes = keys * dim * 2, stage_bytes = 2 * tile_bytes;
  wait_for_previous();
  start_next();
  const int token = a.tiles[blockIdx.x * 2], count = a.tiles[blockIdx.x * 2 + 1];
  const int kv_head = static_cast<int>(blockIdx.y);
  const int group = a.heads / a.kv.kv_heads;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int warp = static_cast<int>(threadIdx.x) / warp_size;
  const int32_t* pages = a.pages + static_cast<int64_t>(a.sequence[token]) * a.max_blocks;
  const int last = a.position[token] + count - 1;
  const int first = a.position[token] >= a.window ? a.position[token] - a.window + 1 : 0;

  QueryRows<dim> rows;
  int64_t element[2];  // of q and out; −1: no such row
  const bf16* q[2];
  GPTOSS_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = warp * 16 + lane / 4 + half * 8, of_token = row / group;
    const bool inside = of_token < count;
    const int position = a.position[token] + of_token;
    element[half] =
        inside
            ? (static_cast<int64_t>(token + of_token) * a.heads + kv_head * group + row % group) *
                  dim
            : -1;
    q[half] = inside ? a.q + element[half] : nullptr;
    rows.last[half] = inside ? position : -1;
    rows.first[half] = position >= a.window ? position - a.window + 1 : 0;
  }
  rows.load(q);

  const int begin = first / page_size * page_size;
  const auto load = [&](int tile) {
    const int start = begin + tile * keys;
    if (start <= last) {
      unsigned char* stage = shared + tile % 2 * stage_bytes;
      for (int i = static_cast<int>(threadIdx.x); i < keys * pieces; i += threads) {
        const int key = i / pieces, piece = i % pieces;
        unsigned char* to = stage + swizzled(key, piece, pieces);
        copy_key(a, pages, kv_head, false, start + key, first, last, piece, to);
        copy_key(a, pages, kv_head, true, start + key, first, last, piece, to + tile_bytes);
      }
    }
    commit_copies();
  };
  load(0);
  GPTOSS_KEEP_LOOP
  for (int tile = 0; begin + tile * keys <= last; ++tile) {
    load(tile + 1);
    wait_for_copies<1>();
    __syncthreads();
    const unsigned char* stage = shared + tile % 2 * stage_bytes;
    rows.template attend<keys>(stage, stage + tile_bytes, begin + tile * keys, a.scale * log2_e);
    __syncthreads();  // before the stage is filled again
  }
  wait_for_copies<0>();
  rows.finish();
  GPTOSS_UNROLL
  for (int half = 0; half < 2; ++half) {
    if (element[half] >= 0) {
      const int head = kv_head * group + (warp * 16 + lane / 4 + half * 8) % group;
      const float weight =
          weight_with_sink(rows.max[half], rows.sum[half], to_float(a.sinks[head]));
      GPTOSS_UNROLL
      for (int n = 0; n < dim / 8; ++n) {
        const uint32_t pair =
            pack_pair(rows.out[n][half * 2] * weight, rows.out[n][half * 2 + 1] * weight);
        store_aligned(a.out + element[half] + n * 8 + lane % 4 * 2, &pair);
      }
    }
  }
}

template <int dim>
void run(const AttentionArgs& a, const Stream& stream) {
  launch({"attention_prefill", {a.tokens, a.heads, dim}}, prefill_kernel<dim>,
         {a.tokens, a.kv.kv_heads, 1}, threads, 4 * keys * dim * 2, stream, a);
}

}  // namespace

int prefill_tokens_a_tile(int group) { return warps * 16 / group; }

void attention_prefill(const AttentionArgs& a, const Stream& stream) {
  GPTOSS_CHECK(a.tokens > 0 && a.heads / a.kv.kv_heads <= warps * 16,
               "attention_prefill: expected groups of at most {} heads, found {} heads on {} KV "
               "heads",
               warps * 16, a.heads, a.kv.kv_heads);
  with_head_dim("attention_prefill", a.kv.head_dim, [&](auto dim) { run<dim()>(a, stream); });
}

}  // namespace gptoss::cuda
