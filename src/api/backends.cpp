// src/api/backends.cpp - the table of backends: a new one is its folder and a row here.
#include "api/backends.hpp"

#include "cpu/backend.hpp"
#include "cuda/backend.hpp"
#include "sycl/backend.hpp"

namespace exactile {

const BackendInterface& backend_of(Backend backend) {
  switch (backend) {
    case Backend::kCpu:
      return cpu::backend();
    case Backend::kCuda:
      return cuda::backend();
    case Backend::kSycl:
      break;
  }
  return sycl::backend();
}

}  // namespace exactile
