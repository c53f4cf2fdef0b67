#include "core/weights.h"

#include "core/check.h"

namespace gptoss {

namespace {

const void* read(WeightSource& source, const std::string& name, DType dtype,
                 const std::vector<int64_t>& shape) {
  const Tensor tensor = source.tensor(name);
  GPTOSS_CHECK(tensor.dtype == dtype, "tensor {}: expected dtype {}, found {}", name,
               dtype_name(dtype), dtype_name(tensor.dtype));
  GPTOSS_CHECK(tensor.shape == shape, "tensor {}: expected shape {}, found {}", name,
               shape_name(shape), shape_name(tensor.shape));
  GPTOSS_CHECK(tensor.data != nullptr, "tensor {}: no data", name);
  const size_t alignment = dtype == DType::bf16 ? alignof(bf16) : 1;
  GPTOSS_CHECK(reinterpret_cast<uintptr_t>(tensor.data) % alignment == 0,
               "tensor {}: address is not a multiple of {} bytes", name, alignment);
  return tensor.data;
}

}  // namespace

const bf16* read_bf16(WeightSource& source, const std::string& name,
                      const std::vector<int64_t>& shape) {
  return static_cast<const bf16*>(read(source, name, DType::bf16, shape));
}

const uint8_t* read_u8(WeightSource& source, const std::string& name,
                       const std::vector<int64_t>& shape) {
  return static_cast<const uint8_t*>(read(source, name, DType::u8, shape));
}

}  // namespace gptoss
