#include "testing.h"

#include <cstdio>

#include "cuda_backend.h"
#include "kernels.h"

namespace gptoss::cuda {

namespace {

template <class T>
DeviceMemory to_device(const T* values, int64_t count) {
  DeviceMemory memory(values == nullptr ? 0 : static_cast<size_t>(count) * sizeof(T));
  if (values != nullptr) {
    memory.copy_from_host(values, memory.bytes());
  }
  return memory;
}

template <class T>
DeviceMemory poisoned(int64_t count) {
  DeviceMemory memory(static_cast<size_t>(count) * sizeof(T));
  memory.fill(0xff);  // NaN in every type
  return memory;
}

void gemm(const bf16* x, const bf16* w, const bf16* bias, float* y, int m, int n, int k, bool add,
          bool few_rows) {
  const auto size = [](int a, int b) { return static_cast<int64_t>(a) * b; };
  const DeviceMemory dx = to_device(x, size(m, k)), dw = to_device(w, size(n, k));
  const DeviceMemory dbias = to_device(bias, n);
  const DeviceMemory dy = add ? to_device(y, size(m, n)) : poisoned<float>(size(m, n));
  GemmArgs a{};
  a.x = dx.as<bf16>();
  a.w = dw.as<bf16>();
  a.bias = bias != nullptr ? dbias.as<bf16>() : nullptr;
  a.y = dy.as<float>();
  a.m = m;
  a.n = n;
  a.k = k;
  a.x_stride = k;
  a.y_stride = n;
  a.add = add;
  (few_rows ? gemv_bf16 : gemm_bf16)(a, nullptr);
  dy.copy_to_host(y, dy.bytes());
}

void norm(const float* x, const bf16* scale, bf16* y, int rows, int n, float eps) {
  const int64_t size = static_cast<int64_t>(rows) * n;
  const DeviceMemory dx = to_device(x, size), dscale = to_device(scale, n);
  const DeviceMemory dy = poisoned<bf16>(size);
  rms_norm({dx.as<float>(), dscale.as<bf16>(), dy.as<bf16>(), rows, n, eps}, nullptr);
  dy.copy_to_host(y, dy.bytes());
}

void unpack(const uint8_t* blocks, const uint8_t* scales, bf16* to, int64_t count) {
  const DeviceMemory dblocks = to_device(blocks, count * 16), dscales = to_device(scales, count);
  const DeviceMemory dto = poisoned<bf16>(count * 32);
  unpack_mxfp4({dblocks.as<uint8_t>(), dscales.as<uint8_t>(), dto.as<bf16>(), count}, nullptr);
  dto.copy_to_host(to, dto.bytes());
}

void route_rows(const float* logits, int32_t* ids, float* weights, int rows, int experts,
                int chosen) {
  const DeviceMemory dlogits = to_device(logits, static_cast<int64_t>(rows) * experts);
  const DeviceMemory dids = poisoned<int32_t>(static_cast<int64_t>(rows) * chosen);
  const DeviceMemory dweights = poisoned<float>(static_cast<int64_t>(rows) * chosen);
  route({dlogits.as<float>(), dids.as<int32_t>(), dweights.as<float>(), rows, experts, chosen},
        nullptr);
  dids.copy_to_host(ids, dids.bytes());
  dweights.copy_to_host(weights, dweights.bytes());
}

bool available(char* reason, size_t size) {
#ifdef GPTOSS_CUDA_EMULATED
  std::snprintf(reason, size, "emulated on the CPU");
  return true;
#else
  return device_available(reason, size);
#endif
}

constexpr HostKernels kernels = {available, gemm, norm, unpack, route_rows};

}  // namespace

#ifdef GPTOSS_CUDA_EMULATED
const HostKernels& emulated_kernels() { return kernels; }
#endif

}  // namespace gptoss::cuda

#ifndef GPTOSS_CUDA_EMULATED
extern "C" __attribute__((visibility("default")))
const gptoss::cuda::HostKernels gptoss_cuda_kernels = gptoss::cuda::kernels;
#endif
