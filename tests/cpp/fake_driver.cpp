// tests/cpp/fake_driver.cpp - the fake driver in place of the one that is loaded.
#include "fake_driver.hpp"

#include <stdexcept>

namespace exactile::cuda {

const Driver& Driver::get() {
  static const Driver fake = test::make_fake();
  return fake;
}

void Driver::check(Result result, const char* call) const {
  if (result != kSuccess) throw std::runtime_error(call);
}

}  // namespace exactile::cuda
