#!/bin/sh
# The C++ compiler of release wheels, as CMake calls it: zig's Clang and libc++, for a glibc as old as
# GPTOSS_ZIG_TARGET says. Kernels are compiled by GPTOSS_KERNELS_CXX, if that is set: GCC makes those
# of bf16 twice as fast (docs/adr/0025-wheels.md). They need nothing of a C++ library, which
# tools/wheels/build_wheels.py checks.
if [ -n "$GPTOSS_KERNELS_CXX" ]; then
  for argument in "$@"; do
    case $argument in
      */core/cpu/kernels/select.cpp) ;;
      # What distributions turn on by default would call functions of theirs. The warnings are false
      # alarms of GCC 12 in its own headers, which core/CMakeLists.txt turns off where it sees GCC.
      */core/cpu/kernels/*.cpp)
        exec "$GPTOSS_KERNELS_CXX" "$@" -fno-stack-protector -U_FORTIFY_SOURCE -fcf-protection=none \
          -Wno-uninitialized -Wno-maybe-uninitialized ;;
    esac
  done
fi
exec "$GPTOSS_ZIG" c++ -target "$GPTOSS_ZIG_TARGET" "$@"
