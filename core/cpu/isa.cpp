#include "core/cpu/isa.h"

#include <algorithm>
#include <cstdint>
#include <string_view>

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

// CPUID and XGETBV are asked here and not by __builtin_cpu_supports: that lacks AMX in the
// compilers of today, and where the compiler's run-time library is zig's, it answers no to
// everything. Intel SDM volume 1, 13.3 (XCR0) and 14 (which bits mean that AVX, AVX-512, AMX may be
// used).

// Bits of XCR0: the registers that the system saves when it takes a core away.
constexpr uint64_t saves_sse = 0;  // always, in 64-bit mode
constexpr uint64_t saves_avx = 0x6;
constexpr uint64_t saves_avx512 = 0xe6;
constexpr uint64_t saves_amx = 0x60000;

enum Register : int { eax = 0, ebx = 1, ecx = 2, edx = 3 };

struct Feature {
  std::string_view name;
  unsigned leaf, subleaf;
  Register where;
  int bit;
  uint64_t saved;  // what of XCR0 it needs
};

constexpr Feature features[] = {
    {"sse2", 1, 0, edx, 26, saves_sse},         {"avx", 1, 0, ecx, 28, saves_avx},
    {"fma", 1, 0, ecx, 12, saves_avx},          {"f16c", 1, 0, ecx, 29, saves_avx},
    {"avx2", 7, 0, ebx, 5, saves_avx},          {"avx512f", 7, 0, ebx, 16, saves_avx512},
    {"avx512bw", 7, 0, ebx, 30, saves_avx512},  {"avx512vl", 7, 0, ebx, 31, saves_avx512},
    {"avx512dq", 7, 0, ebx, 17, saves_avx512},  {"avx512vnni", 7, 0, ecx, 11, saves_avx512},
    {"avx512bf16", 7, 1, eax, 5, saves_avx512}, {"amx_tile", 7, 0, edx, 24, saves_amx},
    {"amx_bf16", 7, 0, edx, 22, saves_amx},
};

struct Leaf {
  unsigned registers[4] = {0, 0, 0, 0};  // by Register; 0 where the CPU does not have the leaf
};

Leaf read_leaf(unsigned leaf, unsigned subleaf) {
  Leaf found;
  unsigned* r = found.registers;
  // The first subleaf's EAX is the number of the last one.
  if (subleaf > 0 && (leaf != 7 || read_leaf(leaf, 0).registers[eax] < subleaf)) {
    return found;
  }
  static_cast<void>(__get_cpuid_count(leaf, subleaf, &r[eax], &r[ebx], &r[ecx], &r[edx]));
  return found;
}

uint64_t saved_registers() {
  constexpr int osxsave = 27;
  if ((read_leaf(1, 0).registers[ecx] >> osxsave & 1u) == 0) {
    return 0;
  }
  uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool has(const Feature& feature, uint64_t saved) {
  const unsigned bits = read_leaf(feature.leaf, feature.subleaf).registers[feature.where];
  return (bits >> feature.bit & 1u) != 0 && (saved & feature.saved) == feature.saved;
}

// Whether the CPU has all of these features.
template <class... Names>
bool has_all(const Names&... names) {
  static const std::vector<std::string> found = cpu_features();
  const auto one = [](std::string_view name) {
    return std::find(found.begin(), found.end(), name) != found.end();
  };
  return (one(names) && ...);
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
  switch (isa) {
    case Isa::generic:
      return true;
    case Isa::avx2:
      return has_all("avx2", "fma", "f16c");
    case Isa::avx512:
      return cpu_supports(Isa::avx2) && has_all("avx512f", "avx512bw", "avx512vl", "avx512dq");
    case Isa::avx512_vnni:
      return cpu_supports(Isa::avx512) && has_all("avx512vnni");
    case Isa::avx512_bf16:
      return cpu_supports(Isa::avx512_vnni) && has_all("avx512bf16");
    case Isa::amx:
      return cpu_supports(Isa::avx512_bf16) && has_all("amx_tile", "amx_bf16") && may_use_amx();
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
  const uint64_t saved = saved_registers();
  for (const Feature& feature : features) {
    if (has(feature, saved)) {
      list.emplace_back(feature.name);
    }
  }
#endif
  return list;
}

}  // namespace gptoss::cpu
