// The test framework and the error macro: a check that cannot fail would make every test green.
#include <limits>

#include "core/check.h"
#include "tests/core/test.h"

using gptoss::test::is_near;
using gptoss::test::state;

namespace {

const double not_a_number = std::numeric_limits<double>::quiet_NaN();
const double infinity = std::numeric_limits<double>::infinity();

// Runs a body that is expected to fail, and takes its failures back.
template <class Body>
int failures_of(const Body& body) {
  const int before = state().failed_checks;
  std::printf("(expected failures: ");
  body();
  std::printf(")\n");
  const int failures = state().failed_checks - before;
  state().failed_checks = before;
  return failures;
}

void refuse(int value) { GPTOSS_CHECK(value == 3, "value: expected {}, found {}", 3, value); }

}  // namespace

TEST(near_refuses_nan) {
  CHECK(!is_near(not_a_number, 1.0, 10.0));
  CHECK(!is_near(1.0, not_a_number, 10.0));
  CHECK(!is_near(1.0, 2.0, not_a_number));
  CHECK(!is_near(not_a_number, not_a_number, infinity));
}

TEST(near_bounds_the_difference) {
  CHECK(is_near(1.0, 1.5, 0.5));
  CHECK(!is_near(1.0, 1.6, 0.5));
  CHECK(is_near(infinity, infinity, 0.0));
  CHECK(!is_near(infinity, -infinity, 1.0));
}

TEST(failed_checks_are_counted) {
  CHECK(failures_of([] { CHECK(1 == 2); }) == 1);
  CHECK(failures_of([] { CHECK_NEAR(not_a_number, 0, 1); }) == 1);
  CHECK(failures_of([] { CHECK_THROWS(refuse(3), "value"); }) == 1);
  CHECK(failures_of([] { CHECK_THROWS(refuse(4), "another text"); }) == 1);
  CHECK(failures_of([] { CHECK(true); }) == 0);
}

TEST(an_exception_fails_its_test) {
  bool passed = true;
  CHECK(failures_of([&] { passed = gptoss::test::passes({"thrower", [] { refuse(4); }}); }) >= 1);
  CHECK(!passed);
}

TEST(errors_name_expected_and_found) {
  refuse(3);
  CHECK_THROWS(refuse(4), "value: expected 3, found 4");
  CHECK(gptoss::format("{}", "nothing after") == "nothing after");
  CHECK(gptoss::format("no hole", 1) == "no hole");
}
