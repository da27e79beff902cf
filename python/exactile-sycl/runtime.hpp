// python/exactile-sycl/runtime.hpp - compile, load and fork, on the SYCL runtime. This folder alone
// is compiled against SYCL's headers. Independent of attention and of Python.
#pragma once

#include <cstdint>
#include <string>
#include <sycl/sycl.hpp>
#include <utility>
#include <vector>

#include "table.hpp"

namespace exactile::sycl {

/// The queue that dpctl keeps at an address.
inline ::sycl::queue& queue_at(uintptr_t address) {
  return *reinterpret_cast<::sycl::queue*>(address);
}

/// One kernel as SPIR-V.
struct Spirv {
  std::string image;
  std::string name;  ///< of the kernel in the image
};

/// Headers (name as in #include <name>, text), then one templated kernel by name.
Spirv compile(const ::sycl::queue& queue, const std::string& source,
              const std::vector<std::pair<std::string, std::string>>& headers,
              const std::string& name_expression, const std::vector<std::string>& flags);

/// Never freed. `registers` of a hardware thread: 128, or 256, which only Intel GPUs have.
const ::sycl::kernel* load(const ::sycl::queue& queue, const Spirv& spirv, int registers);

/// Waits until nothing is held for a kernel any more; not in a process that was forked after a run.
void drain();

/// Once: such processes end without the runtime's own exit handlers, which wait for its threads.
void handle_forks();

/// What exactile's own module calls.
const RuntimeTable& table();

}  // namespace exactile::sycl
