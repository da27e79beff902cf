// python/exactile-sycl/bindings.cpp - the module _sycl: functions of the runtime for Python, and
// the table for exactile's own module. Queues come as the addresses that dpctl gives; the caller
// keeps them alive.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "runtime.hpp"

namespace nb = nanobind;

namespace exactile::sycl {
namespace {

std::string to_string(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

/// (image, name) of a kernel.
nb::tuple compile_kernel(uintptr_t queue, const std::string& source,
                         const std::vector<std::pair<std::string, std::string>>& headers,
                         const std::string& name_expression, const std::vector<nb::bytes>& flags) {
  std::vector<std::string> encoded;  // as os.fsencode has paths
  for (const nb::bytes& flag : flags) encoded.push_back(to_string(flag));
  const Spirv spirv = compile(queue_at(queue), source, headers, name_expression, encoded);
  return nb::make_tuple(nb::bytes(spirv.image.data(), spirv.image.size()), spirv.name);
}

/// A kernel's address, for the table.
uintptr_t load_kernel(uintptr_t queue, const nb::bytes& image, const std::string& name,
                      int registers) {
  const Spirv spirv{.image = to_string(image), .name = name};
  const nb::gil_scoped_release release;
  return reinterpret_cast<uintptr_t>(load(queue_at(queue), spirv, registers));
}

/// Generation of a GPU with matrix engines, as kernels are written for it; empty for another
/// device.
const char* generation_of(const ::sycl::device& device) {
  namespace experimental = ::sycl::ext::oneapi::experimental;
  using experimental::architecture;
  if (!device.is_gpu()) return "";
  switch (device.get_info<experimental::info::device::architecture>()) {
    case architecture::intel_gpu_pvc:
    case architecture::intel_gpu_pvc_vg:
      return "xe_hpc";
    case architecture::intel_gpu_bmg_g21:
    case architecture::intel_gpu_bmg_g31:
    case architecture::intel_gpu_lnl_m:
      return "xe2";
    default:
      return "";
  }
}

nb::dict device_info(uintptr_t queue) {
  namespace info = ::sycl::info::device;
  using ::sycl::aspect;
  ::sycl::device device = queue_at(queue).get_device();
  nb::dict found;
  found["name"] = device.get_info<info::name>();
  found["driver"] = device.get_info<info::driver_version>();
  found["is_cpu"] = device.is_cpu();
  found["fp16"] = device.has(aspect::fp16);
  // The CPU device has the aspect too, for AMX.
  found["xmx"] = device.has(aspect::ext_intel_matrix) ? generation_of(device) : "";
  found["usm"] = device.has(aspect::usm_device_allocations);
  found["compiles"] =
      device.ext_oneapi_can_build(::sycl::ext::oneapi::experimental::source_language::sycl);
  found["sub_group_sizes"] = device.get_info<info::sub_group_sizes>();
  found["max_work_group_size"] = device.get_info<info::max_work_group_size>();
  found["compute_units"] = device.get_info<info::max_compute_units>();
  found["local_bytes"] = device.get_info<info::local_mem_size>();
  found["memory_bytes"] = device.get_info<info::global_mem_size>();
  // A GPU's compute units are its vector engines; each holds several sub-groups at a time.
  found["threads_per_unit"] =
      device.has(aspect::ext_intel_gpu_hw_threads_per_eu)
          ? device.get_info<::sycl::ext::intel::info::device::gpu_hw_threads_per_eu>()
          : 1;
  return found;
}

/// USM of the queue's device, for results of libraries that take them by DLPack.
nb::ndarray<nb::array_api> empty(uintptr_t queue, const std::vector<std::size_t>& shape,
                                 uint8_t code, uint8_t bits, int device_id) {
  std::size_t bytes = bits / 8;
  for (const std::size_t size : shape) bytes *= size;
  struct Block {
    ::sycl::context context;
    void* data;
  };
  const ::sycl::queue& on = queue_at(queue);
  auto block = std::make_unique<Block>(
      Block{.context = on.get_context(),
            .data = ::sycl::malloc_device(std::max<std::size_t>(bytes, 1), on)});
  if (!block->data) throw std::bad_alloc();
  void* const data = block->data;
  const nb::capsule owner(block.release(), [](void* p) noexcept {
    const std::unique_ptr<Block> block(static_cast<Block*>(p));
    ::sycl::free(block->data, block->context);
  });
  return nb::ndarray<nb::array_api>(data, shape.size(), shape.data(), owner, nullptr,
                                    {.code = code, .bits = bits, .lanes = 1},
                                    nb::device::oneapi::value, device_id);
}

}  // namespace
}  // namespace exactile::sycl

NB_MODULE(_sycl, m) {
  using namespace exactile::sycl;
  using namespace nb::literals;
  handle_forks();
  m.def("compile", &compile_kernel, "queue"_a, "source"_a, "headers"_a, "name_expression"_a,
        "flags"_a);
  m.def("load", &load_kernel, "queue"_a, "image"_a, "name"_a, "registers"_a);
  // What was kept until an event is given back with the interpreter still there.
  m.def("drain", &drain, nb::call_guard<nb::gil_scoped_release>());
  m.def("device_info", &device_info, "queue"_a);
  m.def("empty", &empty, "queue"_a, "shape"_a, "code"_a, "bits"_a, "device_id"_a);
  m.attr("table") = nb::capsule(&table(), kTableCapsule);
}
