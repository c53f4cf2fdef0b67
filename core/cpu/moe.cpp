// The mixture of experts: route, group tokens by expert, two expert products, weighted sum.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/cpu/layer.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

namespace {

constexpr int64_t tile_rows = 16;

// One expert's tokens. A pair is (token, an expert it chose); pairs are ordered by expert, then by
// token, so that an expert's are neighbours.
struct ExpertRows {
  int64_t expert;
  int64_t begin, rows;  // pairs
  int64_t tile_begin;   // its first row among bf16 tiles, where each expert begins a new tile
  Product product;
};

struct Routing {
  std::vector<int32_t> token;  // (pairs)
  std::vector<float> weight;   // (pairs)
  std::vector<ExpertRows> experts;
  int64_t rows_in_tiles = 0;
  int64_t most_rows = 0;  // of any expert
  bool uses_bf16 = false, uses_i16 = false, uses_f32 = false;
};

Routing group_by_expert(const Compute& compute, WeightFormat format,
                        const std::vector<int32_t>& chosen, const std::vector<float>& weights,
                        int64_t per_token, int64_t first_expert, int64_t num_experts) {
  Routing routing;
  std::vector<int32_t> start(static_cast<size_t>(num_experts) + 1, 0);
  const auto mine = [&](int32_t e) { return e >= first_expert && e < first_expert + num_experts; };
  for (const int32_t e : chosen) {
    if (mine(e)) {
      ++start[static_cast<size_t>(e - first_expert) + 1];
    }
  }
  std::partial_sum(start.begin(), start.end(), start.begin());
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t begin = start[static_cast<size_t>(e)];
    const int64_t rows = start[static_cast<size_t>(e) + 1] - begin;
    if (rows == 0) {
      continue;
    }
    const Product product = compute.product_for(format, rows);
    routing.experts.push_back({e, begin, rows, routing.rows_in_tiles, product});
    routing.most_rows = std::max(routing.most_rows, rows);
    routing.uses_bf16 |= product == Product::bf16;
    routing.uses_i16 |= product == Product::i16;
    routing.uses_f32 |= product == Product::f32;
    if (product == Product::bf16) {
      routing.rows_in_tiles += (rows + tile_rows - 1) / tile_rows * tile_rows;
    }
  }
  const auto pairs = static_cast<size_t>(start.back());
  routing.token.resize(pairs);
  routing.weight.resize(pairs);
  for (size_t i = 0; i < chosen.size(); ++i) {
    if (!mine(chosen[i])) {
      continue;
    }
    const auto at = static_cast<size_t>(start[static_cast<size_t>(chosen[i] - first_expert)]++);
    routing.token[at] = static_cast<int32_t>(static_cast<int64_t>(i) / per_token);
    routing.weight[at] = weights[i];
  }
  return routing;
}

// Router logits in float32 from operands that are not rounded, in either mode: the gate is small,
// and which experts it picks is discontinuous.
Routing choose_experts(Compute& compute, const ModelConfig& config, const Shard& shard,
                       const LayerPanels& layer, const float* t, int64_t tokens,
                       MoeScratch& scratch) {
  const int64_t num_experts = config.num_experts;
  const int64_t per_token = config.experts_per_token;
  float* logits = scratch.logits.reserve(tokens * num_experts);
  std::vector<int32_t> chosen(static_cast<size_t>(tokens * per_token));
  std::vector<float> weights(chosen.size());
  Operand operand;
  operand.x = t;
  operand.rows = tokens;
  operand.cols = config.hidden_size;
  const int64_t tasks = (tokens + tile_rows - 1) / tile_rows;
  const int64_t cost = std::min(tokens, tile_rows) * config.hidden_size * num_experts;
  parallel_for(compute.threads, tasks, cost, [&](int64_t task, int thread) {
    Part part;
    part.first_row = task * tile_rows;
    part.rows = std::min(tile_rows, tokens - part.first_row);
    part.end = panel_count(num_experts);
    part.y = logits + part.first_row * num_experts;
    part.y_stride = num_experts;
    multiply(compute, operand, layer.gate, part, thread);
    for (int64_t i = part.first_row; i < part.first_row + part.rows; ++i) {
      route(logits + i * num_experts, num_experts, per_token, chosen.data() + i * per_token,
            weights.data() + i * per_token);
    }
  });
  return group_by_expert(compute, layer.mlp1.format, chosen, weights, per_token,
                         shard.first_expert(config), shard.experts(config));
}

bf16* tile_row(bf16* tiles, int64_t row, int64_t cols) {
  return tiles + row / tile_rows * tile_rows * cols + row % tile_rows * panel_block;
}

// The tokens as operands of the first product: for i16 and f32 a row a token, for bf16 each
// expert's rows gathered into tiles.
Operand gather(Compute& compute, const Routing& routing, const float* t, int64_t tokens,
               int64_t hidden, MoeScratch& scratch) {
  Operand operand;
  if (routing.uses_i16 || routing.uses_f32) {
    operand = make_operand(compute, t, tokens, hidden, hidden,
                           routing.uses_i16 ? Product::i16 : Product::f32, scratch.input);
  }
  operand.rows = tokens;
  operand.cols = hidden;
  if (!routing.uses_bf16) {
    return operand;
  }
  bf16* tiles = scratch.input.tiles.reserve(routing.rows_in_tiles * hidden);
  operand.tiles = tiles;
  for (const ExpertRows& e : routing.experts) {
    if (e.product != Product::bf16) {
      continue;
    }
    const int64_t padded = (e.rows + tile_rows - 1) / tile_rows * tile_rows;
    parallel_for(compute.threads, padded, hidden, [&](int64_t r, int) {
      bf16* row = tile_row(tiles, e.tile_begin + r, hidden);
      if (r < e.rows) {
        const int64_t token = routing.token[static_cast<size_t>(e.begin + r)];
        compute.kernels.to_tile_row({t + token * hidden, hidden, row});
        return;
      }
      for (int64_t b = 0; b < hidden / panel_block; ++b) {
        std::memset(static_cast<void*>(row + b * tile_rows * panel_block), 0,
                    panel_block * sizeof(bf16));
      }
    });
  }
  return operand;
}

// Rows [first, first + rows) of an expert's pairs times the weights' panels [begin, end), into a
// slice of this thread: (rows, 16 · (end − begin)).
struct SliceRange {
  int64_t first, rows, begin, end;
  int64_t width() const { return (end - begin) * panel_rows; }
};
const float* slice_product(Compute& compute, Operand operand, const ExpertRows& e,
                           const ExpertPanels& w, const int32_t* row_ids, const SliceRange& range,
                           int thread) {
  operand.product = e.product;
  Part part;
  part.rows = range.rows;
  part.begin = range.begin;
  part.end = range.end;
  part.y_stride = range.width();
  part.y = compute.slice(thread) - range.begin * panel_rows;
  if (e.product == Product::bf16) {
    part.first_row = e.tile_begin + range.first;
  } else if (row_ids != nullptr) {
    part.row_ids = row_ids + e.begin + range.first;
  } else {
    part.first_row = e.begin + range.first;
  }
  multiply(compute, operand, w.expert(e.expert), part, thread);
  return compute.slice(thread);
}

// As many rows as a slice holds, whole tiles.
int64_t rows_per_slice(int64_t width) {
  return Compute::slice_size / width / tile_rows * tile_rows;
}

// h = swiglu(t · mlp1ᵀ + bias), written as the operand of the second product.
Operand first_product(Compute& compute, const Routing& routing, const Operand& input,
                      const ExpertPanels& mlp1, float limit, MoeScratch& scratch) {
  const int64_t inner = mlp1.rows / 2;
  const auto pairs = static_cast<int64_t>(routing.token.size());
  Operand hidden;
  hidden.rows = pairs;
  hidden.cols = inner;
  float* x = routing.uses_f32 ? scratch.hidden.x.reserve(pairs * inner) : nullptr;
  int16_t* q = routing.uses_i16 ? scratch.hidden.q.reserve(pairs * inner) : nullptr;
  const int64_t blocks = panel_blocks(inner);
  float* q_scale = routing.uses_i16 ? scratch.hidden.q_scale.reserve(pairs * blocks) : nullptr;
  bf16* tiles =
      routing.uses_bf16 ? scratch.hidden.tiles.reserve(routing.rows_in_tiles * inner) : nullptr;
  hidden.x = x;
  hidden.q = q;
  hidden.q_scale = q_scale;
  hidden.tiles = tiles;

  const int64_t panels = panel_count(mlp1.rows);
  const int64_t step = panels_per_task(routing.most_rows);
  const int64_t slices = (panels + step - 1) / step;
  const auto task = [&](int64_t i, int thread) {
    const ExpertRows& e = routing.experts[static_cast<size_t>(i / slices)];
    SliceRange range{0, 0, i % slices * step, 0};
    range.end = std::min(panels, range.begin + step);
    const int64_t column = range.begin * panel_rows / 2;
    const int64_t count = std::min(inner - column, range.width() / 2);
    float h[max_panels_per_task * panel_rows / 2];
    for (; range.first < e.rows; range.first += range.rows) {
      range.rows = std::min(rows_per_slice(range.width()), e.rows - range.first);
      const float* u = slice_product(compute, input, e, mlp1, routing.token.data(), range, thread);
      for (int64_t r = 0; r < range.rows; ++r) {
        const int64_t pair = e.begin + range.first + r;
        compute.kernels.swiglu({u + r * range.width(), h, 0, count, limit, compute.round});
        switch (e.product) {
          case Product::f32:
            std::copy(h, h + count, x + pair * inner + column);
            break;
          case Product::i16:
            compute.kernels.quantize({h, count, q + pair * inner + column,
                                      q_scale + pair * blocks + column / panel_block});
            break;
          case Product::bf16:
            compute.kernels.to_tile_row(
                {h, count,
                 tile_row(tiles, e.tile_begin + range.first + r, inner) + column * tile_rows});
            break;
        }
      }
    }
  };
  parallel_for(compute.threads, static_cast<int64_t>(routing.experts.size()) * slices,
               step * panel_rows * mlp1.cols, task);
  if (routing.uses_bf16) {
    // The rows that fill up an expert's last tile.
    for (const ExpertRows& e : routing.experts) {
      const int64_t used = e.rows % tile_rows;
      if (e.product != Product::bf16 || used == 0) {
        continue;
      }
      bf16* last = tile_row(tiles, e.tile_begin + e.rows - used, inner);
      for (int64_t b = 0; b < blocks; ++b) {
        std::memset(static_cast<void*>(last + (b * tile_rows + used) * panel_block), 0,
                    static_cast<size_t>((tile_rows - used) * panel_block) * sizeof(bf16));
      }
    }
  }
  return hidden;
}

// x[token] += weight · (h · mlp2ᵀ + bias). A task owns some columns of x for all experts, so that
// no two write the same element, and a token's experts are added in the order of their numbers.
void second_product(Compute& compute, const Routing& routing, const Operand& hidden,
                    const ExpertPanels& mlp2, float* x) {
  const int64_t panels = panel_count(mlp2.rows);
  const int64_t step = panels_per_task(routing.most_rows);
  const auto pairs = static_cast<int64_t>(routing.token.size());
  parallel_for(
      compute.threads, (panels + step - 1) / step, step * panel_rows * mlp2.cols * pairs,
      [&](int64_t task, int thread) {
        SliceRange range{0, 0, task * step, std::min(panels, (task + 1) * step)};
        const int64_t column = range.begin * panel_rows;
        const int64_t count = std::min(mlp2.rows - column, range.width());
        for (const ExpertRows& e : routing.experts) {
          for (range.first = 0; range.first < e.rows; range.first += range.rows) {
            range.rows = std::min(rows_per_slice(range.width()), e.rows - range.first);
            const float* y = slice_product(compute, hidden, e, mlp2, nullptr, range, thread);
            for (int64_t r = 0; r < range.rows; ++r) {
              const auto pair = static_cast<size_t>(e.begin + range.first + r);
              compute.kernels.add_scaled(x + routing.token[pair] * mlp2.rows + column,
                                         y + r * range.width(), routing.weight[pair], count);
            }
          }
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

void moe(Compute& compute, const ModelConfig& config, const Shard& shard, const LayerPanels& layer,
         const float* t, float* x, int64_t tokens, MoeScratch& scratch) {
  const Routing routing = choose_experts(compute, config, shard, layer, t, tokens, scratch);
  const Operand input = gather(compute, routing, t, tokens, config.hidden_size, scratch);
  const Operand hidden =
      first_product(compute, routing, input, layer.mlp1, config.swiglu_limit, scratch);
  second_product(compute, routing, hidden, layer.mlp2, x);
}

}  // namespace gptoss::cpu
