// Linked into what tests run, this makes the emulated AMX kernels known by name. Compiled for any
// CPU, unlike the kernels themselves: it runs when the library is loaded.
#include "core/cpu/kernels/select.h"

namespace gptoss::testing {
namespace {

#ifdef GPTOSS_HAVE_AMX_EMULATED
[[maybe_unused]] const bool registered = (cpu::add_kernels(cpu::kernels_amx_emulated), true);
#endif

}  // namespace
}  // namespace gptoss::testing
