#include "core/cpu/isa.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#define GPTOSS_X86 1
#endif

namespace gptoss::cpu {

#ifdef GPTOSS_X86
namespace {

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

}  // namespace
#endif

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

bool cpu_supports(Isa isa) {
#ifdef GPTOSS_X86
  // GCC's and Clang's checks include that the system saves the registers.
  switch (isa) {
    case Isa::generic:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return cpu_supports(Isa::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::avx512_vnni:
      return cpu_supports(Isa::avx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::avx512_bf16:
      return cpu_supports(Isa::avx512_vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::amx:
      return cpu_supports(Isa::avx512_bf16) && has_amx_bf16() && may_use_amx();
    case Isa::amx_emulated:
      return cpu_supports(Isa::avx512_bf16);
  }
  return false;
#else
  return isa == Isa::generic;
#endif
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

}  // namespace gptoss::cpu
