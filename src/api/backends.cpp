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
      return sycl::backend();
  }
  __builtin_unreachable();
}

const BackendInterface* find_backend(const Device& device) {
  for (std::size_t i = 0; i < std::size(kBackendNames); ++i) {
    const BackendInterface& backend = backend_of(static_cast<Backend>(i));
    if (backend.refuse_memory(device).empty()) return &backend;
  }
  return nullptr;
}

std::string refuse_memory(const Device& device) {
  if (find_backend(device)) return {};
  return expected_memory("CPU, CUDA or SYCL memory", device);
}

}  // namespace exactile
