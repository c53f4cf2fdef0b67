// The mixture of experts: route, group tokens by expert, two expert products, weighted sum.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu/ops.h"
#include "cpu/threads.h"

namespace gptoss::cpu {

namespace {

constexpr int64_t columns_per_task = 64;    // own kernels: output columns of one expert
constexpr int64_t columns_per_gemm = 1024;  // oneDNN: columns unpacked to bf16 at a time

// Which tokens each expert serves. A pair is (token, rank of the expert for that token); pairs are
// ordered by expert, then by token.
struct Groups {
  std::vector<int32_t> start;  // (experts + 1) into the pairs
  std::vector<int32_t> token;  // (pairs)
  std::vector<int32_t> place;  // (tokens · experts_per_token) → where the pair went
};

Groups group_by_expert(const std::vector<int32_t>& experts, int64_t per_token,
                       int64_t num_experts) {
  Groups g;
  g.start.assign(static_cast<size_t>(num_experts) + 1, 0);
  for (const int32_t e : experts) {
    ++g.start[static_cast<size_t>(e) + 1];
  }
  std::partial_sum(g.start.begin(), g.start.end(), g.start.begin());
  std::vector<int32_t> next(g.start.begin(), g.start.end() - 1);
  g.token.resize(experts.size());
  g.place.resize(experts.size());
  for (size_t i = 0; i < experts.size(); ++i) {
    const int32_t at = next[static_cast<size_t>(experts[i])]++;
    g.token[static_cast<size_t>(at)] = static_cast<int32_t>(static_cast<int64_t>(i) / per_token);
    g.place[i] = at;
  }
  return g;
}

// An expert's rows of one of the two matrices.
MatmulArgs expert_args(const ExpertLinear& w, int64_t expert, int64_t n, int64_t cols) {
  MatmulArgs args{};
  args.cols = cols;
  if (w.dense != nullptr) {
    args.weight = w.dense + expert * n * cols;
  } else {
    args.blocks = w.blocks + expert * n * (cols / mx_block) * mx_block_bytes;
    args.scales = w.scales + expert * n * (cols / mx_block);
  }
  args.bias = w.bias + expert * n;
  return args;
}

// One of the two expert products over all pairs. x has a row per token where `by_token`, otherwise
// a row per pair; `finish(pair, begin, end)` runs on each row's columns as soon as they are there.
template <class Finish>
void expert_product(Compute& compute, const Groups& groups, const ExpertLinear& w, int64_t n,
                    int64_t cols, const float* x, bool by_token, float* y, MoeScratch& scratch,
                    const Finish& finish) {
  const auto num_experts = static_cast<int64_t>(groups.start.size()) - 1;
  std::vector<int64_t> few;  // experts whose rows go through our own kernel
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = groups.start[static_cast<size_t>(e)];
    const int64_t rows = groups.start[static_cast<size_t>(e) + 1] - begin;
    if (rows == 0) {
      continue;
    }
    if (!compute.use_gemm(rows)) {
      few.push_back(e);
      continue;
    }
    // Many rows: gather them as bf16, unpack some columns' weights, and let oneDNN multiply.
    const int64_t padded = padded_rows(rows);
    bf16* operand = scratch.operand.reserve(padded * cols);
    std::memset(static_cast<void*>(operand + rows * cols), 0,
                static_cast<size_t>((padded - rows) * cols) * sizeof(bf16));
    parallel_for(compute.threads, rows, cols, [&](int64_t r, int) {
      const int64_t pair = begin + r;
      const int64_t row = by_token ? groups.token[static_cast<size_t>(pair)] : pair;
      compute.kernels.to_bf16(x + row * cols, operand + r * cols, cols);
    });
    const MatmulArgs args = expert_args(w, e, n, cols);
    for (int64_t first = 0; first < n; first += columns_per_gemm) {
      const int64_t last = std::min(n, first + columns_per_gemm);
      const bf16* part = args.weight != nullptr ? args.weight + first * cols : nullptr;
      if (part == nullptr) {
        bf16* unpacked = scratch.weights.reserve(columns_per_gemm * cols);
        parallel_for(compute.threads, (last - first + columns_per_task - 1) / columns_per_task,
                     columns_per_task * cols, [&](int64_t task, int) {
                       const int64_t from = first + task * columns_per_task;
                       compute.kernels.unpack_mxfp4({args.blocks, args.scales, cols,
                                                     unpacked + (from - first) * cols, from,
                                                     std::min(last, from + columns_per_task)});
                     });
        part = unpacked;
      }
      compute.gemm.matmul(operand, part, y + begin * n + first, padded, last - first, cols, n);
    }
    parallel_for(compute.threads, rows, n, [&](int64_t r, int) {
      float* row = y + (begin + r) * n;
      for (int64_t i = 0; i < n; ++i) {
        row[i] += to_float(args.bias[i]);
      }
      finish(begin + r, 0, n);
    });
  }

  const int64_t tasks_per_expert = (n + columns_per_task - 1) / columns_per_task;
  const int64_t cost = columns_per_task * cols;  // of a row; experts with more cost more
  parallel_for(compute.threads, static_cast<int64_t>(few.size()) * tasks_per_expert, cost,
               [&](int64_t task, int thread) {
                 const int64_t e = few[static_cast<size_t>(task / tasks_per_expert)];
                 const int64_t begin = groups.start[static_cast<size_t>(e)];
                 MatmulArgs args = expert_args(w, e, n, cols);
                 args.x = by_token ? x : x + begin * cols;
                 args.x_stride = cols;
                 args.row_ids = by_token ? groups.token.data() + begin : nullptr;
                 args.rows = groups.start[static_cast<size_t>(e) + 1] - begin;
                 args.y = y + begin * n;
                 args.y_stride = n;
                 args.begin = task % tasks_per_expert * columns_per_task;
                 args.end = std::min(n, args.begin + columns_per_task);
                 args.scratch = compute.thread_scratch(thread);
                 compute.kernels.matmul(args);
                 for (int64_t r = 0; r < args.rows; ++r) {
                   finish(begin + r, args.begin, args.end);
                 }
               });
}

}  // namespace

void route(const float* logits, int64_t n, int64_t count, int32_t* experts, float* weights) {
  const auto chosen = [&](int64_t candidate, int64_t so_far) {
    return std::find(experts, experts + so_far, candidate) != experts + so_far;
  };
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    int64_t best = -1;
    for (int64_t candidate = 0; candidate < n; ++candidate) {
      if (!chosen(candidate, i) && (best < 0 || logits[candidate] > logits[best])) {
        best = candidate;
      }
    }
    experts[i] = static_cast<int32_t>(best);
    weights[i] = std::exp(logits[best] - logits[experts[0]]);
    sum += weights[i];
  }
  for (int64_t i = 0; i < count; ++i) {
    weights[i] /= sum;
  }
}

void moe(Compute& compute, const ModelConfig& config, const LayerWeights& weights, float* t,
         float* x, int64_t tokens, MoeScratch& scratch) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t per_token = config.experts_per_token;

  // The gate is small and discontinuous in effect: its operand is not rounded, in either mode.
  float* logits = scratch.logits.reserve(tokens * config.num_experts);
  std::vector<int32_t> experts(static_cast<size_t>(tokens * per_token));
  std::vector<float> mix(experts.size());
  parallel_for(compute.threads, tokens, hidden * config.num_experts, [&](int64_t i, int) {
    MatmulArgs gate{};
    gate.x = t + i * hidden;
    gate.x_stride = hidden;
    gate.rows = 1;
    gate.cols = hidden;
    gate.weight = weights.gate.weight;
    gate.bias = weights.gate.bias;
    gate.y = logits + i * config.num_experts;
    gate.y_stride = config.num_experts;
    gate.end = config.num_experts;
    compute.kernels.matmul(gate);
    route(gate.y, config.num_experts, per_token, experts.data() + i * per_token,
          mix.data() + i * per_token);
    if (compute.round) {
      compute.kernels.round_bf16(t + i * hidden, hidden);
    }
  });

  const Groups groups = group_by_expert(experts, per_token, config.num_experts);
  // oneDNN writes a group's padding rows too, into rows that later groups overwrite; the last
  // group's need room behind.
  const int64_t pairs = tokens * per_token + gemm_row_multiple;
  float* u = scratch.mlp1_out.reserve(pairs * 2 * inner);
  float* h = scratch.hidden.reserve(pairs * inner);
  float* y = scratch.mlp2_out.reserve(pairs * hidden);
  expert_product(compute, groups, weights.mlp1, 2 * inner, hidden, t, true, u, scratch,
                 [&](int64_t pair, int64_t begin, int64_t end) {
                   compute.kernels.swiglu({u + pair * 2 * inner, h + pair * inner, begin / 2,
                                           end / 2, config.swiglu_limit, compute.round});
                 });
  expert_product(compute, groups, weights.mlp2, hidden, inner, h, false, y, scratch,
                 [](int64_t, int64_t, int64_t) {});
  parallel_for(compute.threads, tokens, hidden * per_token, [&](int64_t i, int) {
    for (int64_t rank = 0; rank < per_token; ++rank) {
      const auto pair = static_cast<size_t>(i * per_token + rank);
      compute.kernels.add_scaled(x + i * hidden, y + groups.place[pair] * hidden, mix[pair],
                                 hidden);
    }
  });
}

}  // namespace gptoss::cpu
