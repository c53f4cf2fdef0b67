// What every part of a layer needs: who computes, with which kernels, at which precision; operands
// of matrix products in the form that the kernels want; products spread over threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "core/cpu/kernels/table.h"
#include "core/cpu/threads.h"

namespace gptoss::cpu {

// A growing buffer that is never initialised and keeps its memory between steps. 64-byte aligned.
template <class T>
class Buffer {
public:
  T* reserve(int64_t count) {
    if (count > size_) {
      data_.reset();  // first, so that old and new are never held together
      size_ = 0;      // and nothing is, if there is no memory
      data_.reset(static_cast<T*>(
          ::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return data_.get();
  }
  T* data() const { return data_.get(); }

private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// Memory for operands made from float32 rows.
struct OperandStorage {
  Buffer<float> x;
  Buffer<int16_t> q;
  Buffer<float> q_scale;
  Buffer<bf16> tiles;
};

struct Compute {
  const Kernels& kernels;
  ThreadPool threads;
  bool round;  // operands of matrix products and the KV cache are bf16

  Compute(Isa isa, int thread_count, bool round_operands);

  // The fastest product for `rows` rows with weights of this format.
  Product product_for(WeightFormat format, int64_t rows) const;

  // One thread's scratch for products, and for a slice of their outputs.
  uint8_t* scratch(int thread) { return scratch_.data() + thread * matmul_scratch; }
  float* slice(int thread) { return slices_.data() + thread * slice_size; }
  static constexpr int64_t slice_size = int64_t{64} << 10;  // floats

private:
  Buffer<uint8_t> scratch_;
  Buffer<float> slices_;
};

// A bf16 operand's tiles while they are written.
class TileWriter {
public:
  TileWriter(bf16* tiles, int64_t cols) : tiles_(tiles), cols_(panel_cols(cols)) {}

  static int64_t padded(int64_t rows) {
    return (rows + operand_tile_rows - 1) / operand_tile_rows * operand_tile_rows;
  }

  const bf16* data() const { return tiles_; }

  // Where columns from `column` on, a multiple of panel_block, of row r go: as TileRowArgs says.
  bf16* row(int64_t r, int64_t column = 0) const {
    return tiles_ + r / operand_tile_rows * operand_tile_rows * cols_ +
           r % operand_tile_rows * panel_block + column * operand_tile_rows;
  }

  // A row that only fills up a tile.
  void zero_row(int64_t r) const {
    for (int64_t column = 0; column < cols_; column += panel_block) {
      std::fill_n(row(r, column), panel_block, bf16{0});
    }
  }

private:
  bf16* tiles_;
  int64_t cols_;
};

// Rows of x (rows, cols), x_stride apart, as an operand of this product. Rounds to bf16 where
// compute.round; x itself is left as it is. An i16 operand serves the f32 product too.
Operand make_operand(Compute& compute, const float* x, int64_t rows, int64_t cols, int64_t x_stride,
                     Product product, OperandStorage& storage);

// The operand's product on this thread, with the thread's scratch.
void multiply(Compute& compute, MatmulArgs args, int thread);

// y (rows, w.rows), rows y_stride apart, = x · wᵀ + bias, spread over threads. Several matrices
// with the same operand share one pass.
struct LinearJob {
  const Panels* w;
  float* y;
  int64_t y_stride;
};
void linear(Compute& compute, const Operand& x, const std::vector<LinearJob>& jobs);

// How many panels a task takes, for `rows` operand rows. One row: short tasks, so that threads end
// together. Many: what the bf16 product takes at a time. A multiple of 4, so that the 32 outputs of
// swiglu that 64 rows of weights give are never torn apart.
constexpr int64_t max_panels_per_task = 12;
constexpr int64_t panels_per_task(int64_t rows) { return rows < 16 ? 4 : max_panels_per_task; }
static_assert(panels_per_task(1) % 4 == 0 && panels_per_task(16) % 4 == 0);
static_assert(panels_per_task(1) <= max_panels_per_task);

}  // namespace gptoss::cpu
