// src/sycl/loaded_kernels.cpp - the process's table of loaded kernels.
#include "sycl/loaded_kernels.hpp"

#include <utility>

#include "jit/kernel_table.hpp"

namespace exactile::sycl {
namespace {

using LoadedKernels = jit::KernelTable<std::pair<const Place*, AnySpec>, const Kernel*>;

/// Never freed: launches may go on at exit.
LoadedKernels& loaded_kernels() {
  static auto& kernels = *new LoadedKernels;
  return kernels;
}

KernelLoader kernel_loader = nullptr;

}  // namespace

void set_kernel_loader(KernelLoader loader) { kernel_loader = loader; }

const Kernel* loaded_kernel(const Queue* queue, const Place* place, const AnySpec& spec) {
  return loaded_kernels().get({place, spec}, [&] { return kernel_loader(queue, loadable(spec)); });
}

}  // namespace exactile::sycl
