// src/python/cuda_bindings.cpp - bindings: CUDA devices, kernels, memory.
#include "python/cuda_bindings.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "base/dlpack.hpp"
#include "cuda/device.hpp"
#include "jit/cache.hpp"
#include "python/jit_bindings.hpp"

namespace nb = nanobind;

namespace exactile::cuda {
namespace {

nb::dict device_info(int ordinal) {
  const Device& device = Device::get(ordinal);
  nb::dict info;
  info["name"] = device.name();
  info["compute_capability"] = nb::make_tuple(device.major(), device.minor());
  info["multiprocessors"] = device.multiprocessors();
  info["memory_bytes"] = device.memory_bytes();
  return info;
}

/// `driver_version` (13000: 13.0), `devices`. Raises RuntimeError where there is no driver.
nb::dict driver_info() {
  nb::list devices;
  for (int i = 0; i < Device::count(); ++i) devices.append(device_info(i));
  nb::dict info;
  info["driver_version"] = Driver::get().version;
  info["devices"] = devices;
  return info;
}

/// (source, name_expression) of a kernel; for tests.
nb::tuple kernel_program(const std::string& family, const std::string& dtype, int head_dim,
                         int head_dim_v, bool masked, const std::string& scheduler,
                         const std::string& probe, const std::string& layout,
                         const std::string& scores) {
  const jit::Program program = make_program(
      KernelSpec{.instance = {.dtype = from_name<Dtype>(dtype, kDtypeNames, "dtype"),
                              .head_dim = head_dim,
                              .head_dim_v = head_dim_v,
                              .policy = {.scheduler = from_name<SchedulerKind>(
                                             scheduler, kSchedulerNames, "scheduler")},
                              .layout = from_name<KvLayoutKind>(layout, kKvLayoutNames, "layout"),
                              .scores = from_name<ScoresKind>(scores, kScoresNames, "scores")},
                 .family = from_name<Family>(family, kFamilyNames, "family"),
                 .mask = masked ? MaskKind::kMasked : MaskKind::kFull,
                 .probe = from_name<Probe>(probe, kProbeNames, "probe")},
      "");
  return nb::make_tuple(program.source, program.name_expression);
}

/// (origin, cache key, lowered name, image) of a program, found or compiled.
nb::tuple find_cubin(const std::string& source, const std::string& name_expression,
                     const std::string& architecture) {
  const jit::Program program{
      .source = source, .name_expression = name_expression, .architecture = architecture};
  jit::Found found;
  {
    nb::gil_scoped_release release;
    found = jit::find(program);
  }
  jit::warn_of_cache();
  const std::string& image = found.binary->image;
  return nb::make_tuple(name_of(found.origin, jit::kOriginNames), found.key,
                        found.binary->lowered_name, nb::bytes(image.data(), image.size()));
}

static_assert(sizeof(dlpack::Tensor) == sizeof(nb::dlpack::dltensor) &&
              offsetof(dlpack::Tensor, dtype) == offsetof(nb::dlpack::dltensor, dtype) &&
              offsetof(dlpack::Tensor, byte_offset) == offsetof(nb::dlpack::dltensor, byte_offset));

/// Memory for a result, for libraries that take it by DLPack. Freed with the last view of it.
nb::ndarray<nb::array_api> empty(const std::vector<std::size_t>& shape, const std::string& dtype,
                                 int ordinal) {
  const auto type = from_name<Dtype>(dtype, kDtypeNames, "dtype");
  Device& device = Device::get(ordinal);
  const ContextScope scope(device);
  std::size_t bytes = dtype_bytes(type);
  for (const std::size_t size : shape) bytes *= size;
  struct Memory {
    Device& device;
    DevicePtr address = 0;
  };
  auto memory = std::make_unique<Memory>(Memory{.device = device});
  EXACTILE_DRIVER_CALL(Driver::get(), cuMemAlloc, &memory->address,
                       std::max<std::size_t>(bytes, 1));
  void* const address = reinterpret_cast<void*>(memory->address);
  const nb::capsule owner(memory.release(), [](void* p) noexcept {
    const std::unique_ptr<Memory> memory(static_cast<Memory*>(p));
    try {
      const ContextScope scope(memory->device);
      Driver::get().cuMemFree(memory->address);  // waits for what uses it
    } catch (const std::exception&) {            // at exit the driver may be gone
    }
  });
  const dlpack::DataType element = dlpack::data_type(type);
  return nb::ndarray<nb::array_api>(
      address, shape.size(), shape.data(), owner, nullptr,
      {.code = static_cast<uint8_t>(element.code), .bits = element.bits, .lanes = element.lanes},
      nb::device::cuda::value, ordinal);
}

/// (address, device) of lengths on a GPU.
nb::tuple lengths(
    const nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cuda>& x) {
  return nb::make_tuple(reinterpret_cast<uint64_t>(x.data()), x.device_id());
}

void synchronize(int ordinal, uint64_t stream) {
  const ContextScope scope(Device::get(ordinal));
  nb::gil_scoped_release release;
  EXACTILE_DRIVER_CALL(Driver::get(), cuStreamSynchronize, reinterpret_cast<Stream>(stream));
}

}  // namespace

void bind(nb::module_& m) {
  using namespace nb::literals;
  m.def("cuda_driver_info", &driver_info);
  m.def("cuda_empty", &empty, "shape"_a, "dtype"_a, "device"_a);
  m.def("cuda_lengths", &lengths, "lengths"_a.noconvert());
  m.def("cuda_synchronize", &synchronize, "device"_a, "stream"_a);
  m.def("kernel_program", &kernel_program, "family"_a, "dtype"_a, "head_dim"_a, "head_dim_v"_a,
        "masked"_a, "scheduler"_a, "probe"_a = "NoProbe", "layout"_a = kKvLayoutNames[0],
        "scores"_a = kScoresNames[0]);
  m.def("find_cubin", &find_cubin, "source"_a, "name_expression"_a, "architecture"_a);
}

}  // namespace exactile::cuda
