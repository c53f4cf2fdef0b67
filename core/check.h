// Errors: one exception type, one macro. Messages name the thing, what was expected, what was
// found.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace gptoss {

// Everything that can go wrong by the caller's doing, or the machine's (memory). The bindings turn
// it into the Python class gptoss.Error. Nothing in core/ aborts the process.
class Error : public std::runtime_error {
public:
  using std::runtime_error::runtime_error;
};

namespace detail {

inline void format_rest(std::ostringstream& out, std::string_view text) { out << text; }

template <class First, class... Rest>
void format_rest(std::ostringstream& out, std::string_view text, const First& first,
                 const Rest&... rest) {
  const size_t hole = text.find("{}");
  if (hole == std::string_view::npos) {
    out << text;
    return;
  }
  out << text.substr(0, hole) << first;
  format_rest(out, text.substr(hole + 2), rest...);
}

}  // namespace detail

// format("{} of {}", 1, 2) == "1 of 2". (std::format needs GCC 13; we build with GCC 11 and later.)
// Called as gptoss::format: where the standard library has its own, an argument from std would make
// the bare name ambiguous.
template <class... Args>
std::string format(std::string_view text, const Args&... args) {
  std::ostringstream out;
  detail::format_rest(out, text, args...);
  return out.str();
}

}  // namespace gptoss

#define GPTOSS_CHECK(condition, ...)                        \
  do {                                                      \
    if (!(condition)) {                                     \
      throw ::gptoss::Error(::gptoss::format(__VA_ARGS__)); \
    }                                                       \
  } while (0)
