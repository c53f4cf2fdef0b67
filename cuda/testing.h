// Each kernel on arrays of the host: copies them to the device, poisons what the kernel is to
// write, runs it, copies that back. For tests and for looking at one kernel by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dtype.h"

namespace gptoss::cuda {

// Throw Error as the kernels do.
struct HostKernels {
  // False without a device; `reason` then says why, otherwise it names the device.
  bool (*available)(char* reason, size_t reason_size);
  // x (m, k), w (n, k), bias (n) or null, y (m, n). `add`: y is read, too. few_rows: gemv_bf16.
  void (*gemm_bf16)(const bf16* x, const bf16* w, const bf16* bias, float* y, int m, int n, int k,
                    bool add, bool few_rows);
  void (*rms_norm)(const float* x, const bf16* scale, bf16* y, int rows, int n, float eps);
  void (*unpack_mxfp4)(const uint8_t* blocks, const uint8_t* scales, bf16* to, int64_t count);
  void (*route)(const float* logits, int32_t* ids, float* weights, int rows, int experts,
                int chosen);
};

// The kernels of this very build, emulated.
const HostKernels& emulated_kernels();
// Those of a library for the device; an empty path: the emulated ones. Throws Error when the
// library or its device is missing.
const HostKernels& load_host_kernels(const std::string& path);

}  // namespace gptoss::cuda
