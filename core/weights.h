// Canonical tensor names → checked views. Names and layout are those of OpenAI's original
// checkpoint, except that qkv comes as its three row blocks (docs/adr/0003). A backend reads each
// tensor with the shape that ModelConfig asks for, before it touches a byte.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"

namespace gptoss {

// Attention's matrices and the unembedding; experts stay as published in any case.
enum class DenseWeights : int {
  published = 0,  // bf16, exact
  q8 = 1,         // int8 in groups of 32 with a bf16 scale
};

// Where tensors come from: a mapped checkpoint, a synthetic model, a trainer's arrays. The view of
// a tensor stays valid until it is released, or for good if it never is.
class WeightSource {
public:
  virtual ~WeightSource() = default;
  virtual Tensor tensor(const std::string& name) = 0;
  // The backend has repacked the tensor and will not look at it again.
  virtual void release(const std::string& name) = 0;
  // "mxfp4" experts come as .blocks and .scales; otherwise as one bf16 tensor.
  virtual bool experts_are_mxfp4() const = 0;
  // Matrices come as X.panels, in the CPU's own layout (core/cpu/panels.h), with dense weights of
  // this format; nothing where the tensors come as published.
  virtual std::optional<DenseWeights> panels() const { return std::nullopt; }
  // The bf16 matrix `name` is stored as Q8_0 and also comes as that, unrounded, as name.q8_0:
  // (rows, cols / 32, 34) bytes.
  virtual bool is_q8_0(const std::string& name) const {
    (void)name;
    return false;
  }
};

// The data of a tensor of this dtype and shape. Throws Error naming the tensor, what was expected
// and what was found.
const bf16* read_bf16(WeightSource& source, const std::string& name,
                      const std::vector<int64_t>& shape);
const uint8_t* read_u8(WeightSource& source, const std::string& name,
                       const std::vector<int64_t>& shape);

}  // namespace gptoss
