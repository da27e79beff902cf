// exactile/element.hpp - element types, as template arguments of Traits. They carry bits: every
// compiler has its own arithmetic for them, and SYCL's bfloat16 class cannot be saved as SPIR-V.
#pragma once

#include <exactile/platform.hpp>

namespace exactile {

struct Fp16 {
  unsigned short bits;
};
struct Bf16 {
  unsigned short bits;
};

}  // namespace exactile
