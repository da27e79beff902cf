// exactile/sycl/xmx/text.hpp - assembly text put together from constants: asm((text("mov ", 3))).
#pragma once

#include <exactile/platform.hpp>

namespace exactile::sycl::xmx {

/// Text of an asm statement, which asks for data() and size().
class Text {
 public:
  constexpr const char* data() const { return data_; }
  constexpr unsigned long size() const { return size_; }

  constexpr void append(const char* part) {
    while (*part) data_[size_++] = *part++;
  }
  constexpr void append(char part) { data_[size_++] = part; }
  constexpr void append(int part) {
    if (part > 9) append(part / 10);
    data_[size_++] = static_cast<char>('0' + part % 10);
  }
  constexpr void append(const Text& part) {
    for (unsigned long i = 0; i < part.size_; ++i) data_[size_++] = part.data_[i];
  }

 private:
  char data_[6144]{};
  unsigned long size_ = 0;
};

template <class... Parts>
constexpr Text text(const Parts&... parts) {
  Text result;
  (result.append(parts), ...);
  return result;
}

}  // namespace exactile::sycl::xmx
