// Sums over GPUs by NCCL, which is looked for when it is asked for: nothing else needs it.
#include "core/comm.h"

#include "cuda/cuda_backend.h"
#include "cuda/runtime.h"

#ifndef GPTOSS_CUDA_EMULATED
#include <dlfcn.h>
#endif

namespace gptoss::cuda {

#ifdef GPTOSS_CUDA_EMULATED

void make_communicators(int ranks, std::vector<std::unique_ptr<Communicator>>& to) {
  to = thread_communicators(ranks);
}

#else

namespace {

// The part of nccl.h (2.x) that is used; its values have not changed since 2.0.
using NcclComm = void*;
using NcclResult = int;
constexpr NcclResult nccl_success = 0;
constexpr int nccl_float32 = 7, nccl_sum = 0;

struct Nccl {
  NcclResult (*init_all)(NcclComm* comms, int count, const int* devices);
  NcclResult (*all_reduce)(const void* from, void* to, size_t count, int type, int operation,
                           NcclComm comm, cudaStream_t stream);
  NcclResult (*abort)(NcclComm comm);
  NcclResult (*destroy)(NcclComm comm);
  const char* (*error_string)(NcclResult result);

  Nccl() {
    void* library = nullptr;
    const char* chosen = std::getenv("GPTOSS_NCCL");
    for (const char* name : {chosen, "libnccl.so.2", "libnccl.so"}) {
      if (name != nullptr && library == nullptr) {
        library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      }
    }
    GPTOSS_CHECK(library != nullptr,
                 "tensor parallel: libnccl.so.2 was not found. It comes with gptoss[cuda12] or "
                 "gptoss[cuda13]; GPTOSS_NCCL may name the file ({})",
                 dlerror());
    const auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      GPTOSS_CHECK(function != nullptr, "tensor parallel: NCCL has no {}", name);
    };
    find(init_all, "ncclCommInitAll");
    find(all_reduce, "ncclAllReduce");
    find(abort, "ncclCommAbort");
    find(destroy, "ncclCommDestroy");
    find(error_string, "ncclGetErrorString");
  }

  void check(NcclResult result, const char* what) const {
    GPTOSS_CHECK(result == nccl_success, "tensor parallel: {}: {}", what, error_string(result));
  }
};

const Nccl& nccl() {
  static const Nccl functions;
  return functions;
}

class NcclCommunicator final : public Communicator {
public:
  explicit NcclCommunicator(NcclComm comm) : comm_(comm) {}
  ~NcclCommunicator() override {
    if (comm_ != nullptr) {
      (void)nccl().destroy(comm_);
    }
  }
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  void all_reduce(float* values, int64_t count, void* stream) override {
    GPTOSS_CHECK(comm_ != nullptr, "tensor parallel: another rank has failed");
    nccl().check(nccl().all_reduce(values, values, static_cast<size_t>(count), nccl_float32,
                                   nccl_sum, comm_, static_cast<cudaStream_t>(stream)),
                 "ncclAllReduce");
  }

  void abort() override {
    if (NcclComm comm = std::exchange(comm_, nullptr)) {
      (void)nccl().abort(comm);
    }
  }

  // CUDA graphs hold the communicator that they were recorded with.
  bool can_restart() const override { return false; }
  void restart() override {}

private:
  NcclComm comm_;
};

}  // namespace

void make_communicators(int ranks, std::vector<std::unique_ptr<Communicator>>& to) {
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  GPTOSS_CHECK(ranks <= devices,
               "tensor parallel: expected at most {} ranks, the GPUs here, found {}", devices,
               ranks);
  std::vector<int> numbers(static_cast<size_t>(ranks));
  for (int r = 0; r < ranks; ++r) {
    numbers[static_cast<size_t>(r)] = r;
  }
  std::vector<NcclComm> comms(numbers.size());
  nccl().check(nccl().init_all(comms.data(), ranks, numbers.data()), "ncclCommInitAll");
  for (NcclComm comm : comms) {
    to.push_back(std::make_unique<NcclCommunicator>(comm));
  }
}

#endif

}  // namespace gptoss::cuda
