// The mixture of experts: route, group tokens by expert, two expert products, weighted sum.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/cpu/layer.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

namespace {

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
  int64_t max_rows = 0;  // of any expert
  bool used[products] = {};

  bool uses(Product product) const { return used[static_cast<int>(product)]; }
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
    routing.max_rows = std::max(routing.max_rows, rows);
    routing.used[static_cast<int>(product)] = true;
    if (product == Product::bf16) {
      routing.rows_in_tiles += TileWriter::padded(rows);
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
Routing choose_experts(Compute& compute, const LayerInput& in, const float* t,
                       MoeScratch& scratch) {
  const int64_t tokens = in.batch.num_tokens;
  const int64_t num_experts = in.config.num_experts;
  const int64_t per_token = in.config.experts_per_token;
  float* logits = scratch.logits.reserve(tokens * num_experts);
  std::vector<int32_t> chosen(static_cast<size_t>(tokens * per_token));
  std::vector<float> weights(chosen.size());
  Operand operand;
  operand.x = t;
  operand.rows = tokens;
  operand.cols = in.config.hidden_size;
  constexpr int64_t step = 16;  // tokens
  const int64_t tasks = (tokens + step - 1) / step;
  const int64_t cost = std::min(tokens, step) * operand.cols * num_experts;
  parallel_for(compute.threads, tasks, cost, [&](int64_t task, int thread) {
    MatmulArgs args;
    args.x = operand;
    args.first_row = task * step;
    args.rows = std::min(step, tokens - args.first_row);
    args.w = in.weights.gate;
    args.end = panel_count(num_experts);
    args.y = logits + args.first_row * num_experts;
    args.y_stride = num_experts;
    multiply(compute, args, thread);
    for (int64_t i = args.first_row; i < args.first_row + args.rows; ++i) {
      route(logits + i * num_experts, num_experts, per_token, chosen.data() + i * per_token,
            weights.data() + i * per_token);
    }
  });
  return group_by_expert(compute, in.weights.mlp1.format, chosen, weights, per_token,
                         in.shard.first_expert(in.config), in.shard.experts(in.config));
}

// The tokens as operands of the first product: for i16 and f32 a row per token, for bf16 each
// expert's rows gathered into tiles.
Operand gather(Compute& compute, const Routing& routing, const float* t, int64_t tokens,
               int64_t hidden, MoeScratch& scratch) {
  Operand operand;
  if (routing.uses(Product::i16) || routing.uses(Product::f32)) {
    operand = make_operand(compute, t, tokens, hidden, hidden,
                           routing.uses(Product::i16) ? Product::i16 : Product::f32, scratch.input);
  }
  operand.rows = tokens;
  operand.cols = hidden;
  if (!routing.uses(Product::bf16)) {
    return operand;
  }
  const TileWriter tiles(scratch.input.tiles.reserve(routing.rows_in_tiles * hidden), hidden);
  operand.tiles = tiles.data();
  for (const ExpertRows& e : routing.experts) {
    if (e.product != Product::bf16) {
      continue;
    }
    parallel_for(compute.threads, TileWriter::padded(e.rows), hidden, [&](int64_t r, int) {
      if (r < e.rows) {
        const int64_t token = routing.token[static_cast<size_t>(e.begin + r)];
        compute.kernels.to_tile_row({t + token * hidden, hidden, tiles.row(e.tile_begin + r)});
      } else {
        tiles.zero_row(e.tile_begin + r);
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
const float* slice_product(Compute& compute, const Operand& operand, const ExpertRows& e,
                           const ExpertPanels& w, const int32_t* row_ids, const SliceRange& range,
                           int thread) {
  MatmulArgs args;
  args.x = operand;
  args.x.product = e.product;
  args.rows = range.rows;
  args.w = w.expert(e.expert);
  args.begin = range.begin;
  args.end = range.end;
  args.y_stride = range.width();
  args.y = compute.slice(thread) - range.begin * panel_rows;
  if (e.product == Product::bf16) {
    args.first_row = e.tile_begin + range.first;
  } else if (row_ids != nullptr) {
    args.row_ids = row_ids + e.begin + range.first;
  } else {
    args.first_row = e.begin + range.first;
  }
  multiply(compute, args, thread);
  return compute.slice(thread);
}

// As many rows as a slice holds, whole tiles.
int64_t rows_per_slice(int64_t width) {
  return Compute::slice_size / width / operand_tile_rows * operand_tile_rows;
}

// The second product's operand while it is written, in the forms that its experts take: a row
// per pair, and for bf16 rows in tiles.
class HiddenWriter {
public:
  HiddenWriter(const Kernels& kernels, const Routing& routing, int64_t cols, OperandStorage& memory)
      : kernels_(kernels),
        pairs_(static_cast<int64_t>(routing.token.size())),
        cols_(cols),
        x_(routing.uses(Product::f32) ? memory.x.reserve(pairs_ * cols) : nullptr),
        q_(routing.uses(Product::i16) ? memory.q.reserve(pairs_ * cols) : nullptr),
        q_scale_(routing.uses(Product::i16) ? memory.q_scale.reserve(pairs_ * panel_blocks(cols))
                                            : nullptr),
        tiles_(routing.uses(Product::bf16) ? memory.tiles.reserve(routing.rows_in_tiles * cols)
                                           : nullptr,
               cols) {}

  // h (count) becomes columns from `column` on, a multiple of 32, of row r of an expert's.
  void write(const ExpertRows& e, int64_t r, int64_t column, const float* h, int64_t count) const {
    const int64_t at = (e.begin + r) * cols_ + column;
    switch (e.product) {
      case Product::f32:
        std::copy(h, h + count, x_ + at);
        break;
      case Product::i16:
        kernels_.quantize({h, count, q_ + at, q_scale_ + at / panel_block});
        break;
      case Product::bf16:
        kernels_.to_tile_row({h, count, tiles_.row(e.tile_begin + r, column)});
        break;
    }
  }

  // The rows that fill up an expert's last tile.
  void fill_up(const ExpertRows& e) const {
    for (int64_t r = e.rows; e.product == Product::bf16 && r < TileWriter::padded(e.rows); ++r) {
      tiles_.zero_row(e.tile_begin + r);
    }
  }

  Operand operand() const {
    Operand operand;
    operand.rows = pairs_;
    operand.cols = cols_;
    operand.x = x_;
    operand.q = q_;
    operand.q_scale = q_scale_;
    operand.tiles = tiles_.data();
    return operand;
  }

private:
  const Kernels& kernels_;
  int64_t pairs_, cols_;
  float* x_;
  int16_t* q_;
  float* q_scale_;
  TileWriter tiles_;
};

// h = swiglu(t · mlp1ᵀ + bias), written as the operand of the second product.
Operand first_product(Compute& compute, const Routing& routing, const Operand& input,
                      const ExpertPanels& mlp1, float limit, MoeScratch& scratch) {
  const int64_t inner = mlp1.rows / 2;
  const HiddenWriter hidden(compute.kernels, routing, inner, scratch.hidden);
  const int64_t panels = panel_count(mlp1.rows);
  const int64_t step = panels_per_task(routing.max_rows);
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
        compute.kernels.swiglu({u + r * range.width(), h, 0, count, limit, compute.round});
        hidden.write(e, range.first + r, column, h, count);
      }
    }
  };
  parallel_for(compute.threads, static_cast<int64_t>(routing.experts.size()) * slices,
               step * panel_rows * mlp1.cols, task);
  for (const ExpertRows& e : routing.experts) {
    hidden.fill_up(e);
  }
  return hidden.operand();
}

// x[token] += weight · (h · mlp2ᵀ + bias). A task owns some columns of x for all experts, so that
// no two write the same element, and a token's experts are added in the order of their numbers.
void second_product(Compute& compute, const Routing& routing, const Operand& hidden,
                    const ExpertPanels& mlp2, float* x) {
  const int64_t panels = panel_count(mlp2.rows);
  const int64_t step = panels_per_task(routing.max_rows);
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

void moe(Compute& compute, const LayerInput& in, const float* t, float* x, MoeScratch& scratch) {
  const LayerPanels& w = in.weights;
  const Routing routing = choose_experts(compute, in, t, scratch);
  const Operand input =
      gather(compute, routing, t, in.batch.num_tokens, in.config.hidden_size, scratch);
  const Operand hidden =
      first_product(compute, routing, input, w.mlp1, in.config.swiglu_limit, scratch);
  second_product(compute, routing, hidden, w.mlp2, x);
}

}  // namespace gptoss::cpu
