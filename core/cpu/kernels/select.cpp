#include "core/cpu/kernels/select.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "core/check.h"

namespace gptoss::cpu {

namespace {

// What this library is built with, slowest first.
constexpr const Kernels* built[] = {
    &kernels_generic,
#ifdef GPTOSS_HAVE_AVX2
    &kernels_avx2,
#endif
#ifdef GPTOSS_HAVE_AVX512
    &kernels_avx512,
#endif
#ifdef GPTOSS_HAVE_AVX512_VNNI
    &kernels_avx512_vnni,
#endif
#ifdef GPTOSS_HAVE_AVX512_BF16
    &kernels_avx512_bf16,
#endif
#ifdef GPTOSS_HAVE_AMX
    &kernels_amx,
#endif
};

std::vector<const Kernels*>& added() {
  static std::vector<const Kernels*> list;
  return list;
}

}  // namespace

void add_kernels(const Kernels& kernels) { added().push_back(&kernels); }

const Kernels* find_kernels(Isa isa) {
  const auto of_isa = [&](const Kernels* kernels) { return kernels->isa == isa; };
  const auto* const* in_build = std::find_if(std::begin(built), std::end(built), of_isa);
  if (in_build != std::end(built)) {
    return *in_build;
  }
  const auto in_added = std::find_if(added().begin(), added().end(), of_isa);
  return in_added != added().end() ? *in_added : nullptr;
}

const Kernels& kernels_for(Isa isa) {
  const Kernels* kernels = find_kernels(isa);
  GPTOSS_CHECK(kernels != nullptr, "this build has no {} kernels", isa_name(isa));
  return *kernels;
}

std::vector<Isa> usable_isas() {
  std::vector<Isa> list;
  for (const Kernels* kernels : built) {
    if (cpu_supports(kernels->isa)) {
      list.push_back(kernels->isa);
    }
  }
  return list;
}

std::vector<Isa> testable_isas() {
  std::vector<Isa> list = usable_isas();
  for (const Kernels* kernels : added()) {
    if (cpu_supports(kernels->isa)) {
      list.push_back(kernels->isa);
    }
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
  throw Error(gptoss::format("CPU instruction set: expected one of {} on this machine, found '{}'",
                             usable, name));
}

Isa select_isa() {
  const char* forced = std::getenv("GPTOSS_CPU_ISA");
  if (forced != nullptr && *forced != '\0') {
    return parse_isa(forced);
  }
  // Some chips run vdpbf16ps at half the speed of float32 arithmetic, others at twice. Timed once,
  // so that the whole process uses the same kernels.
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

}  // namespace gptoss::cpu
