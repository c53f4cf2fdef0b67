// A tensor that somebody else owns: pointer, dtype, shape. Row-major and contiguous.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace gptoss {

enum class DType : int { bf16 = 0, u8 = 1 };

inline const char* dtype_name(DType dtype) { return dtype == DType::bf16 ? "BF16" : "U8"; }

struct Tensor {
  const void* data = nullptr;
  DType dtype = DType::bf16;
  std::vector<int64_t> shape;
};

inline std::string shape_name(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace gptoss
