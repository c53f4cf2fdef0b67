// Matrix products and their operands, spread over threads.
#include <algorithm>

#include "core/check.h"
#include "core/cpu/kernels/select.h"
#include "core/cpu/linear.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

Compute::Compute(Isa isa, int thread_count, bool round_operands)
    : kernels(kernels_for(isa)), threads(thread_count), round(round_operands) {
  scratch_.reserve(threads.size() * matmul_scratch);
  slices_.reserve(threads.size() * slice_size);
}

Product Compute::product_for(WeightFormat format, int64_t rows) const {
  if (!round) {
    return Product::f32;
  }
  if (kernels.matmul_of(Product::bf16) != nullptr &&
      rows >= kernels.min_rows_bf16[static_cast<int>(format)]) {
    return Product::bf16;
  }
  const bool has_scales = format != WeightFormat::bf16;
  if (has_scales && kernels.matmul_of(Product::i16) != nullptr) {
    return Product::i16;
  }
  return Product::f32;
}

Operand make_operand(Compute& compute, const float* x, int64_t rows, int64_t cols, int64_t x_stride,
                     Product product, OperandStorage& storage) {
  const Kernels& kernels = compute.kernels;
  const int64_t padded = panel_cols(cols);
  Operand operand;
  operand.product = product;
  operand.rows = rows;
  operand.cols = cols;
  if (product == Product::bf16) {
    const int64_t padded_rows = TileWriter::padded(rows);
    const TileWriter tiles(storage.tiles.reserve(padded_rows * padded), cols);
    operand.tiles = tiles.data();
    parallel_for(compute.threads, padded_rows, cols, [&](int64_t r, int) {
      if (r < rows) {
        kernels.to_tile_row({x + r * x_stride, cols, tiles.row(r)});
      } else {
        tiles.zero_row(r);
      }
    });
    return operand;
  }
  const bool rounds = compute.round;
  const bool as_is = !rounds && padded == cols && x_stride == cols;
  if (product == Product::f32 && as_is) {
    operand.x = x;
    return operand;
  }
  float* copy = storage.x.reserve(rows * padded);
  operand.x = copy;
  if (product == Product::i16) {
    operand.q = storage.q.reserve(rows * padded);
    operand.q_scale = storage.q_scale.reserve(rows * panel_blocks(cols));
  }
  parallel_for(compute.threads, rows, 2 * cols, [&](int64_t r, int) {
    float* row = copy + r * padded;
    std::copy(x + r * x_stride, x + r * x_stride + cols, row);
    std::fill(row + cols, row + padded, 0.0f);
    if (rounds) {
      kernels.round_bf16(row, cols);
    }
    if (product == Product::i16) {
      kernels.quantize({row, cols, storage.q.data() + r * padded,
                        storage.q_scale.data() + r * panel_blocks(cols)});
    }
  });
  return operand;
}

void multiply(Compute& compute, MatmulArgs args, int thread) {
  args.scratch = compute.scratch(thread);
  compute.kernels.matmul_of(args.x.product)(args);
}

void linear(Compute& compute, const Operand& x, const std::vector<LinearJob>& jobs) {
  struct Task {
    const LinearJob* job;
    int64_t begin, end;
  };
  std::vector<Task> tasks;
  int64_t cost = 0;
  for (const LinearJob& job : jobs) {
    const int64_t panels = panel_count(job.w->rows);
    const int64_t step = panels_per_task(x.rows);
    for (int64_t begin = 0; begin < panels; begin += step) {
      tasks.push_back({&job, begin, std::min(panels, begin + step)});
    }
    cost = std::max(cost, step * panel_rows * x.rows * x.cols);
  }
  parallel_for(compute.threads, static_cast<int64_t>(tasks.size()), cost,
               [&](int64_t i, int thread) {
                 const Task& task = tasks[static_cast<size_t>(i)];
                 MatmulArgs args;
                 args.x = x;
                 args.rows = x.rows;
                 args.w = *task.job->w;
                 args.begin = task.begin;
                 args.end = task.end;
                 args.y = task.job->y;
                 args.y_stride = task.job->y_stride;
                 multiply(compute, args, thread);
               });
}

}  // namespace gptoss::cpu
