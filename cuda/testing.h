// Each kernel on arrays of the host: copies them to the device, poisons what the kernel is to
// write, runs it, copies that back. For tests and for looking at one kernel by itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gptoss::cuda {

enum HostArrayUse : int { array_in, array_out, array_in_out };

struct HostArray {
  void* data;  // null: the kernel gets a null pointer
  size_t bytes;
  HostArrayUse use;  // array_out: filled with NaN before
};

struct HostCall {
  const char* kernel;
  const HostArray* arrays;
  int array_count;
  const int64_t* sizes;
  int size_count;
  const double* numbers;
  int number_count;
  int repeat;       // runs, at least 1; more than one to measure
  double* seconds;  // of each run after the first, (repeat − 1); or null
  // Only emulated: the GPU to emulate.
  int major, multiprocessors, shared_bytes;
};

struct HostKernels {
  // False without a device; `reason` then says why, otherwise it names the device.
  bool (*available)(char* reason, size_t reason_size);
  // Throws Error as the kernels do, and when the call's arrays are not what the kernel takes.
  void (*call)(const HostCall& call);
};

// The kernels of this very build, emulated.
const HostKernels& emulated_kernels();
// Those of a library for the device; an empty path: the emulated ones. Throws Error when the
// library or its device is missing.
const HostKernels& load_host_kernels(const std::string& path);

}  // namespace gptoss::cuda
