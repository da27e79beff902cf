// tests/cpp/check.hpp - the whole test framework: count checks, print those that fail.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

namespace exactile::test {

inline long num_checks = 0, num_failures = 0;

inline void fail(const char* condition, const char* file, int line, const std::string& context) {
  if (++num_failures > 20) return;  // the first few say enough
  std::fprintf(stderr, "%s:%d: failed: %s\n  with %s\n", file, line, condition, context.c_str());
}

/// Exit status of a test: non-zero when a check failed, or when none was made.
inline int report() {
  std::printf("%ld of %ld checks failed\n", num_failures, num_checks);
  return num_failures != 0 || num_checks == 0;
}

}  // namespace exactile::test

/// Checks a condition. `context` is what to stream out with a failure: `"len_q " << len_q`.
#define EXACTILE_CHECK(condition, context)                                     \
  do {                                                                         \
    ++::exactile::test::num_checks;                                            \
    if (!(condition)) {                                                        \
      std::ostringstream context_;                                             \
      context_ << context; /* NOLINT: an expression with << cannot be in () */ \
      ::exactile::test::fail(#condition, __FILE__, __LINE__, context_.str());  \
    }                                                                          \
  } while (false)
