#include "core/dtype.h"

#include <cmath>
#include <limits>

#include "tests/core/test.h"

using namespace gptoss;

TEST(every_bf16_value_survives) {
  int changed = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = to_float(bf16{static_cast<uint16_t>(bits)});
    const uint16_t back = to_bf16(value).bits;
    changed += std::isnan(value) ? !std::isnan(to_float(bf16{back})) : back != bits;
  }
  CHECK(changed == 0);
}

TEST(bf16_rounds_to_nearest_even) {
  CHECK(to_bf16(bits_to_float(0x3f808000)).bits == 0x3f80);  // halfway, even below
  CHECK(to_bf16(bits_to_float(0x3f818000)).bits == 0x3f82);  // halfway, even above
  CHECK(to_bf16(bits_to_float(0x3f808001)).bits == 0x3f81);
  CHECK(to_bf16(bits_to_float(0x3f817fff)).bits == 0x3f81);
  CHECK(to_bf16(bits_to_float(0xbf818000)).bits == 0xbf82);
  CHECK(to_bf16(std::numeric_limits<float>::max()).bits == 0x7f80);  // to infinity
  CHECK(to_bf16(bits_to_float(0x00008000)).bits == 0x0000);          // subnormal halves
  CHECK(to_bf16(bits_to_float(0x00018000)).bits == 0x0002);
}

TEST(nan_and_infinity_stay) {
  CHECK(std::isnan(round_to_bf16(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(round_to_bf16(bits_to_float(0x7f800001))));  // its payload is cut off
  CHECK(std::isnan(round_to_bf16(bits_to_float(0xffffffff))));
  CHECK(std::isinf(round_to_bf16(std::numeric_limits<float>::infinity())));
  CHECK(round_to_bf16(-std::numeric_limits<float>::infinity()) < 0);
}

TEST(scales_are_powers_of_two) {
  for (int byte = 0; byte < 255; ++byte) {
    CHECK(static_cast<double>(e8m0_to_float(static_cast<uint8_t>(byte))) ==
          std::ldexp(1.0, byte - 127));
  }
}

TEST(fp4_values_are_those_of_the_table) {
  const float table[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (int nibble = 0; nibble < 16; ++nibble) {
    const float wanted = nibble < 8 ? table[nibble] : -table[nibble - 8];
    CHECK(e2m1_values[nibble] == wanted);
    CHECK(std::signbit(e2m1_values[nibble]) == (nibble >= 8));
    CHECK(to_float(bf16{e2m1_as_bf16[nibble]}) == wanted);
    CHECK(e2m1_as_bf16[nibble] == to_bf16(e2m1_values[nibble]).bits);
  }
}
