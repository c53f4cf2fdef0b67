#include "cpu/isa.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "check.h"
#include "cpu/kernels.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define GPTOSS_X86 1
#endif

namespace gptoss::cpu {

namespace {

#ifdef GPTOSS_X86
// The compilers' own list lacks AMX: read from CPUID leaf 7.
bool has_amx_bf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 24 & 1u) != 0 && (d >> 22 & 1u) != 0;
}

// The system saves the tiles of this process only after it was asked to (Linux 5.16 and newer).
bool may_use_amx() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;               // XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

bool supports(Isa isa) {
#ifdef GPTOSS_X86
  // GCC's and Clang's checks include that the system saves the registers.
  switch (isa) {
    case Isa::generic:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return supports(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::avx512_vnni:
      return supports(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return supports(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return supports(Isa::avx512_bf16) && has_amx_bf16() && may_use_amx();
    case Isa::amx_emulated:
      return supports(Isa::avx512_bf16);
  }
  return false;
#else
  return isa == Isa::generic;
#endif
}

// CPUs granted by the cgroup (v2 or v1) that a container runs in; 0 where none is set.
int cgroup_cpus() {
  double quota = 0.0, period = 0.0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  if (!(v2 >> quota >> period)) {  // "max 100000" fails to parse: no limit
    std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
    std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
    if (!(quota_file >> quota) || !(period_file >> period)) {
      return 0;
    }
  }
  return quota > 0.0 && period > 0.0 ? static_cast<int>(std::max(1.0, std::ceil(quota / period)))
                                     : 0;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic:
      return "generic";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512_vnni:
      return "avx512_vnni";
    case Isa::avx512_bf16:
      return "avx512_bf16";
    case Isa::amx:
      return "amx";
    case Isa::amx_emulated:
      return "amx_emulated";
  }
  return "unknown";
}

std::vector<Isa> testable_isas() {
  std::vector<Isa> list;
  for (const Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16,
                        Isa::amx, Isa::amx_emulated}) {
    if (find_kernels(isa) != nullptr && supports(isa)) {
      list.push_back(isa);
    }
  }
  return list;
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> list = testable_isas();
  if (list.back() == Isa::amx_emulated) {
    list.pop_back();
  }
  return list;
}

Isa parse_isa(const std::string& name) {
  std::string usable;
  for (const Isa isa : testable_isas()) {
    if (name == isa_name(isa)) {
      return isa;
    }
  }
  for (const Isa isa : usable_isas()) {
    usable += (usable.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw Error(
      format("CPU instruction set: expected one of {} on this machine, found '{}'", usable, name));
}

Isa select_isa() {
  const char* forced = std::getenv("GPTOSS_CPU_ISA");
  if (forced != nullptr && *forced != '\0') {
    return parse_isa(forced);
  }
  // Some chips run vdpbf16ps at half the speed of float32 arithmetic, others at twice. Timed once:
  // all of a process takes the same.
  static const Isa best = [] {
    std::vector<Isa> usable = usable_isas();
    if (usable.back() == Isa::avx512_bf16 && !kernels_for(Isa::avx512_bf16).bf16_is_fast()) {
      usable.pop_back();
    }
    return usable.back();
  }();
  return best;
}

std::string describe_isa() {
  try {
    const char* forced = std::getenv("GPTOSS_CPU_ISA");
    return std::string(isa_name(select_isa())) +
           (forced != nullptr && *forced != '\0' ? " kernels (GPTOSS_CPU_ISA)" : " kernels");
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> list;
#ifdef GPTOSS_X86
#define GPTOSS_FEATURE(name)          \
  if (__builtin_cpu_supports(name)) { \
    list.emplace_back(name);          \
  }
  GPTOSS_FEATURE("sse2")
  GPTOSS_FEATURE("avx")
  GPTOSS_FEATURE("fma")
  GPTOSS_FEATURE("avx2")
  GPTOSS_FEATURE("avx512f")
  GPTOSS_FEATURE("avx512bw")
  GPTOSS_FEATURE("avx512vl")
  GPTOSS_FEATURE("avx512dq")
  GPTOSS_FEATURE("avx512vnni")
  GPTOSS_FEATURE("avx512bf16")
#undef GPTOSS_FEATURE
  if (has_amx_bf16()) {
    list.emplace_back("amx_bf16");
  }
#endif
  return list;
}

int usable_threads() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    count = CPU_COUNT(&set);
  }
#endif
  const int quota = cgroup_cpus();
  return std::max(1, quota > 0 ? std::min(count, quota) : count);
}

}  // namespace gptoss::cpu
