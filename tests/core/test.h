// A small test framework: one executable per file, its main() is here.
//
//   TEST(sums_are_exact) { CHECK(1 + 1 == 2); CHECK_NEAR(0.1 + 0.2, 0.3, 1e-15); }
//
// `./test_file [part of a name]` runs the tests whose name contains the part. A failed check does
// not end its test. The last line says "N passed, M failed"; the exit status is 1 if any failed.
#pragma once

#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace gptoss::test {

struct Test {
  const char* name;
  void (*run)();
};

struct State {
  std::vector<Test> tests;
  int failed_checks = 0;  // in the test that is running
};

inline State& state() {
  static State value;
  return value;
}

struct Register {
  Register(const char* name, void (*run)()) { state().tests.push_back({name, run}); }
};

inline void fail(const char* file, int line, const std::string& message) {
  ++state().failed_checks;
  std::printf("%s:%d: %s\n", file, line, message.c_str());
}

inline void check(bool holds, const char* expression, const char* file, int line) {
  if (!holds) {
    fail(file, line, std::string("not true: ") + expression);
  }
}

// |found - expected| <= tolerance; false when any of the three is NaN. Equal infinities are near.
inline bool is_near(double found, double expected, double tolerance) {
  return found == expected || std::fabs(found - expected) <= tolerance;
}

inline void check_near(double found, double expected, double tolerance, const char* expression,
                       const char* file, int line) {
  if (!is_near(found, expected, tolerance)) {
    char numbers[160];
    std::snprintf(numbers, sizeof numbers, " is %.9g, expected %.9g within %.3g", found, expected,
                  tolerance);
    fail(file, line, expression + std::string(numbers));
  }
}

template <class Call>
void check_throws(const Call& call, const std::string& substring, const char* expression,
                  const char* file, int line) {
  try {
    call();
  } catch (const std::exception& error) {
    if (std::string(error.what()).find(substring) == std::string::npos) {
      fail(file, line,
           std::string(expression) + " threw \"" + error.what() + "\", expected it to contain \"" +
               substring + "\"");
    }
    return;
  }
  fail(file, line, std::string(expression) + " threw nothing, expected \"" + substring + "\"");
}

// True when every check of the test held and nothing was thrown out of it.
inline bool passes(const Test& test) {
  state().failed_checks = 0;
  try {
    test.run();
  } catch (const std::exception& error) {
    fail(test.name, 0, std::string("threw \"") + error.what() + "\"");
  } catch (...) {
    fail(test.name, 0, "threw something that is no std::exception");
  }
  return state().failed_checks == 0;
}

inline int run_all(const std::string& part) {
  int passed = 0;
  int failed = 0;
  for (const Test& test : state().tests) {
    if (std::string(test.name).find(part) == std::string::npos) {
      continue;
    }
    const bool good = passes(test);
    std::printf("%s %s\n", good ? "ok    " : "FAILED", test.name);
    ++(good ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0;
}

}  // namespace gptoss::test

#define TEST(name)                                                           \
  static void test_##name();                                                 \
  static const ::gptoss::test::Register register_##name{#name, test_##name}; \
  static void test_##name()

#define CHECK(...) \
  ::gptoss::test::check(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)

#define CHECK_NEAR(found, expected, tolerance)                                          \
  ::gptoss::test::check_near(static_cast<double>(found), static_cast<double>(expected), \
                             static_cast<double>(tolerance), #found, __FILE__, __LINE__)

// The expression must throw a std::exception whose message contains the substring.
#define CHECK_THROWS(expression, substring)                                                   \
  ::gptoss::test::check_throws([&] { (void)(expression); }, substring, #expression, __FILE__, \
                               __LINE__)

int main(int argc, char** argv) { return ::gptoss::test::run_all(argc > 1 ? argv[1] : ""); }
