// What every part of a layer needs: who computes, with which kernels, at which precision; operands
// of matrix products in the form that the kernels want; products spread over threads.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace gptoss::cpu {

// A growing buffer that is never initialised and keeps its memory between steps. 64-byte aligned.
template <class T>
class Buffer {
public:
  T* reserve(int64_t count) {
    if (count > size_) {
      data_.reset();
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

// Which of the three products on panels (cpu/kernels.h).
enum class Product : int { f32, i16, bf16 };

// Rows of activations in one of the products' forms.
struct Operand {
  Product product = Product::f32;
  int64_t rows = 0, cols = 0;
  const float* x = nullptr;        // f32: (·, panel_cols(cols)), zeros from cols on
  const int16_t* q = nullptr;      // i16: (·, panel_cols(cols))
  const float* q_scale = nullptr;  // i16: (·, panel_blocks(cols))
  const bf16* tiles = nullptr;     // bf16: (ceil(rows / 16), panel_blocks(cols), 16, 32)
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

  // The fastest product for so many rows with weights of this format.
  Product product_for(WeightFormat format, int64_t rows) const;

  // One thread's scratch for products, and for a slice of their outputs.
  uint8_t* scratch(int thread) { return scratch_.data() + thread * matmul_scratch; }
  float* slice(int thread) { return slices_.data() + thread * slice_size; }
  static constexpr int64_t slice_size = int64_t{64} << 10;  // floats

private:
  Buffer<uint8_t> scratch_;
  Buffer<float> slices_;
};

// Rows of x (rows, cols), x_stride apart, as an operand of this product. Rounds to bf16 where
// compute.round; x itself is left as it is. An i16 operand serves the f32 product too.
Operand make_operand(Compute& compute, const float* x, int64_t rows, int64_t cols, int64_t x_stride,
                     Product product, OperandStorage& storage);

// One of the products on this thread: y[i, n] of rows `first_row` … of the operand (or of rows
// row_ids[0 … rows) where given; not for bf16) and the weights' panels [begin, end).
struct Part {
  int64_t first_row = 0;  // bf16: a multiple of 16
  const int32_t* row_ids = nullptr;
  int64_t rows = 0;
  int64_t begin = 0, end = 0;
  float* y = nullptr;  // y of the first row and of weight row 0
  int64_t y_stride = 0;
};
void multiply(Compute& compute, const Operand& x, const Panels& w, const Part& part, int thread);

// y (rows, w.rows), rows y_stride apart, = x · wᵀ + bias, spread over threads. Several matrices
// with the same operand share one pass.
struct LinearJob {
  const Panels* w;
  float* y;
  int64_t y_stride;
};
void linear(Compute& compute, const Operand& x, const std::vector<LinearJob>& jobs);

// How many panels a task takes, for so many operand rows. A multiple of 4, so that the 32 outputs
// of swiglu that 64 rows of weights give are never torn apart.
int64_t panels_per_task(int64_t rows);

}  // namespace gptoss::cpu
