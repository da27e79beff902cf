// tests/cpp/check.hpp - the whole test framework: count checks, print those that fail.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

namespace exactile::test {

inline long num_checks = 0, num_failures = 0;

inline void check(bool passed, const char* where, const std::string& context) {
  ++num_checks;
  if (passed || ++num_failures > 20) return;  // the first few say enough
  std::fprintf(stderr, "failed: %s\n  with %s\n", where, context.c_str());
}

/// Exit status of a test: non-zero when a check failed, or when none was made.
inline int report() {
  std::printf("%ld of %ld checks failed\n", num_failures, num_checks);
  return num_failures != 0 || num_checks == 0;
}

}  // namespace exactile::test

#define EXACTILE_STRING_(line) #line
#define EXACTILE_STRING(line) EXACTILE_STRING_(line)

/// Checks a condition. `context` is what to print with a failure: `"len_q " << len_q`.
#define EXACTILE_CHECK(condition, context)                                                   \
  do {                                                                                       \
    const bool passed_ = (condition);                                                        \
    ::exactile::test::check(passed_, __FILE__ ":" EXACTILE_STRING(__LINE__) ": " #condition, \
                            passed_ ? std::string()                                          \
                                    : (std::ostringstream() << context).str()); /* NOLINT */ \
  } while (false)
