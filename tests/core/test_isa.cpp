// What the CPU is found to have, beside what Linux says of it.
#include "core/cpu/isa.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/cpu/kernels/select.h"
#include "tests/core/test.h"

using namespace gptoss;
using cpu::cpu_features, cpu::cpu_supports, cpu::Isa;

namespace {

using Names = std::vector<std::string>;

bool contains(const Names& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The first CPU's line "flags" in /proc/cpuinfo; empty where there is none, as on Arm.
Names linux_flags() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      Names flags;
      for (std::string word; words >> word;) {
        flags.push_back(word);
      }
      return flags;
    }
  }
  return {};
}

}  // namespace

#if defined(__x86_64__)

TEST(features_are_those_that_linux_lists) {
  const Names flags = linux_flags();
  if (flags.empty()) {
    std::printf("no flags in /proc/cpuinfo: nothing to compare with\n");
    return;
  }
  const Names found = cpu_features();
  // Ours, and Linux's where it differs.
  constexpr std::array<std::pair<const char*, const char*>, 13> names = {{
      {"sse2", "sse2"},
      {"avx", "avx"},
      {"fma", "fma"},
      {"f16c", "f16c"},
      {"avx2", "avx2"},
      {"avx512f", "avx512f"},
      {"avx512bw", "avx512bw"},
      {"avx512vl", "avx512vl"},
      {"avx512dq", "avx512dq"},
      {"avx512vnni", "avx512_vnni"},
      {"avx512bf16", "avx512_bf16"},
      {"amx_tile", "amx_tile"},
      {"amx_bf16", "amx_bf16"},
  }};
  for (const auto& [ours, theirs] : names) {
    if (contains(found, ours) != contains(flags, theirs)) {
      test::fail(__FILE__, __LINE__,
                 std::string(ours) + ": found " + (contains(found, ours) ? "here" : "not here") +
                     ", which /proc/cpuinfo denies");
    }
  }
  for (const std::string& name : found) {
    CHECK(std::any_of(names.begin(), names.end(),
                      [&](const auto& pair) { return name == pair.first; }));
  }
}

TEST(every_instruction_set_includes_the_one_before) {
  const std::array<Isa, 5> sets = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512_vnni,
                                   Isa::avx512_bf16};
  for (size_t i = 1; i < sets.size(); ++i) {
    CHECK(!cpu_supports(sets[i]) || cpu_supports(sets[i - 1]));
  }
  CHECK(!cpu_supports(Isa::amx) || cpu_supports(Isa::avx512_bf16));
  CHECK(cpu_supports(Isa::amx_emulated) == cpu_supports(Isa::avx512_bf16));
}

TEST(the_sets_need_every_flag_of_theirs) {
  const Names found = cpu_features();
  const auto all = [&](std::initializer_list<const char*> names) {
    return std::all_of(names.begin(), names.end(),
                       [&](const char* name) { return contains(found, name); });
  };
  CHECK(cpu_supports(Isa::avx2) == all({"avx2", "fma", "f16c"}));
  CHECK(cpu_supports(Isa::avx512_bf16) ==
        all({"avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni",
             "avx512bf16"}));
  CHECK(!cpu_supports(Isa::amx) || all({"amx_tile", "amx_bf16"}));
}

#else

TEST(other_processors_have_the_generic_kernels) {
  CHECK(cpu_features().empty());
  CHECK(cpu_supports(Isa::generic));
  CHECK(!cpu_supports(Isa::avx2));
}

#endif

TEST(what_the_cpu_has_is_chosen) {
  CHECK(!cpu::usable_isas().empty());
  CHECK(cpu::usable_isas().front() == Isa::generic);
  for (const Isa isa : cpu::usable_isas()) {
    CHECK(cpu_supports(isa));
  }
}
