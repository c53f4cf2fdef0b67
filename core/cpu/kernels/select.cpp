#include "core/cpu/kernels/select.h"

#include <cstdlib>

#include "core/check.h"

namespace gptoss::cpu {

const Kernels* find_kernels(Isa isa) {
  static constexpr const Kernels* built[] = {
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
#ifdef GPTOSS_HAVE_AMX_EMULATED
      &kernels_amx_emulated,
#endif
  };
  for (const Kernels* kernels : built) {
    if (kernels->isa == isa) {
      return kernels;
    }
  }
  return nullptr;
}

const Kernels& kernels_for(Isa isa) {
  const Kernels* kernels = find_kernels(isa);
  GPTOSS_CHECK(kernels != nullptr, "this build has no {} kernels", isa_name(isa));
  return *kernels;
}

std::vector<Isa> testable_isas() {
  std::vector<Isa> list;
  for (const Isa isa : {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_vnni, Isa::avx512_bf16,
                        Isa::amx, Isa::amx_emulated}) {
    if (find_kernels(isa) != nullptr && cpu_supports(isa)) {
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

}  // namespace gptoss::cpu
