// Rows of logits → tokens, of which only the tokens come back from the device.
#pragma once

#include <vector>

#include "core/batch.h"
#include "core/sampler.h"
#include "cuda/kernels.h"

namespace gptoss::cuda {

class DeviceSampling {
public:
  // Rows [first, first + rows) of the batch, whose logits (rows, vocab) lie on the device, into the
  // output; waits for the stream. Does nothing where the batch does not sample. Throws Error as
  // sample_row() in core/sampler.h.
  void run(const float* logits, int vocab, const Batch& batch, const Output& output, int first,
           int rows, const Stream& stream);

private:
  void on_device(const float* logits, int vocab, const Batch& batch, const Output& output,
                 int first, int rows, const Stream& stream);
  template <class T>
  T* reserve(DeviceMemory& memory, int64_t count, const Stream& stream);

  DeviceMemory rows_, history_ids_, history_counts_, bias_ids_, bias_values_, masks_, results_,
      top_ids_, top_logprobs_, modified_;
  PinnedMemory host_;
  std::vector<float> host_logits_;
  SamplerScratch scratch_;
};

}  // namespace gptoss::cuda
