// Dense bf16 matrix products through oneDNN, for many rows at a time. A build without oneDNN has
// the same class, never available.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "dtype.h"

namespace gptoss::cpu {

// Rows of x and y are padded to a multiple of this, so that few distinct shapes arise and each
// shape's generated code is made once.
constexpr int64_t gemm_row_multiple = 16;
inline int64_t padded_rows(int64_t rows) {
  return (rows + gemm_row_multiple - 1) / gemm_row_multiple * gemm_row_multiple;
}

class DenseGemm {
public:
  // `threads`: OpenMP threads that calls will run with.
  explicit DenseGemm(int threads);
  ~DenseGemm();
  DenseGemm(const DenseGemm&) = delete;
  DenseGemm& operator=(const DenseGemm&) = delete;

  // False where oneDNN is not built in, or this CPU lacks the instructions that make its bf16
  // product fast (then our own kernels are as good).
  bool available() const;

  // y[m, n] = Σ_k x[m, k] · w[n, k], float32 accumulation and result. rows must be padded_rows().
  // Throws Error with oneDNN's message and the shape.
  void matmul(const bf16* x,  // (rows, cols)
              const bf16* w,  // (n, cols)
              float* y,       // (rows, ·), rows y_stride apart
              int64_t rows, int64_t n, int64_t cols, int64_t y_stride);

private:
  struct State;
  std::unique_ptr<State> state_;
};

// "3.2.0", or empty without oneDNN.
std::string onednn_version();

}  // namespace gptoss::cpu
