// src/python/sycl_bindings.cpp - bytes out for a launch; programs and SPIR-V out and in.
#include "python/sycl_bindings.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "api/prefill.hpp"
#include "jit/cache.hpp"
#include "python/jit_bindings.hpp"
#include "python/torch_arrays.hpp"
#include "python/usm_arrays.hpp"
#include "sycl/kernels.hpp"
#include "sycl/launch.hpp"

namespace nb = nanobind;

namespace exactile::sycl {
namespace {

namespace fs = std::filesystem;

nb::bytes to_bytes(const std::string& text) { return nb::bytes(text.data(), text.size()); }

SyclKernel kernel_named(const std::string& name) {
  return from_name<SyclKernel>(name, kSyclKernelNames, "EXACTILE_SYCL_KERNEL");
}

Dtype dtype_named(const std::string& name) {
  return from_name<Dtype>(name, kDtypeNames, "plan: dtype");
}

using Addresses = std::vector<std::pair<std::string, uint64_t>>;

/// Checks, then (argument 0 of the kernel, addresses of the arrays that have elements). `lse`,
/// `work_groups`: addresses, or 0.
std::tuple<nb::bytes, Addresses> params_of(const Plan& plan, nb::handle q, nb::handle k,
                                           nb::handle v, nb::handle out, uint64_t lse,
                                           double softmax_scale, uint64_t work_groups) {
  const auto read = [&](nb::handle x, const char* name, bool writable = false) {
    Array array = read_array(x, {.name = name, .planned = plan.dtype, .writable = writable});
    // Which oneAPI device and context it is says the runtime.
    if (array.ref.device.type == kDeviceOneApi) array.ref.device.id = 0;
    return array;
  };
  const Array arrays_read[] = {read(q, "q"), read(k, "k"), read(v, "v"), read(out, "out", true)};
  const PrefillArgs args{
      .q = arrays_read[0].ref,
      .k = arrays_read[1].ref,
      .v = arrays_read[2].ref,
      .out = arrays_read[3].ref,
      .lse = reinterpret_cast<float*>(lse),
      .softmax_scale = softmax_scale,
      .work_groups = reinterpret_cast<int32_t*>(work_groups),
  };
  check_args(plan, args);
  if (const Torch* const torch = Torch::loaded(); torch && torch->owns(out)) torch->will_write(out);
  Addresses addresses;
  const std::pair<const char*, const ArrayRef&> arrays[] = {
      {"q", args.q}, {"k", args.k}, {"v", args.v}, {"out", args.out}};
  for (const auto& [name, array] : arrays) {
    if (array.shape[0] == 0) continue;
    addresses.emplace_back(name, reinterpret_cast<uint64_t>(array.data));
  }
  return {to_bytes(params(plan, args)), addresses};
}

/// Work-items, local memory, registers and program of a plan's kernel.
std::tuple<int, int, int, std::string, std::string> kernel_of(const Plan& plan, bool count) {
  const Shape shape = shape_of(plan.sycl_kernel, plan.dtype, plan.head_dim, plan.head_dim_v);
  const jit::Program program = make_program({.kernel = plan.sycl_kernel,
                                             .dtype = plan.dtype,
                                             .head_dim = plan.head_dim,
                                             .head_dim_v = plan.head_dim_v,
                                             .scheduler = plan.scheduler,
                                             .user = plan.user_scheduler.get(),
                                             .count = count});
  return {shape.threads, shape.local_bytes, shape.registers, program.source,
          program.name_expression};
}

/// (block_m, block_n, threads, local_bytes, registers), or None where the kernel has no such row.
std::optional<std::tuple<int, int, int, int, int>> shape(const std::string& kernel,
                                                         const std::string& dtype, int64_t head_dim,
                                                         int64_t head_dim_v) {
  const SyclKernel which = kernel_named(kernel);
  if (!has_row(which, dtype_named(dtype), head_dim, head_dim_v)) return std::nullopt;
  const Shape found = shape_of(which, dtype_named(dtype), head_dim, head_dim_v);
  return std::tuple(found.block_m, found.block_n, found.threads, found.local_bytes,
                    found.registers);
}

jit::Program program(const std::string& source, const std::string& name_expression) {
  return {.source = source,
          .name_expression = name_expression,
          .architecture = "",
          .language = jit::Language::kSycl};
}

/// (origin, cache key, name, SPIR-V).
using FoundFields = std::tuple<std::string, std::string, std::string, nb::bytes>;

FoundFields to_tuple(const jit::Found& found, const jit::Program& of) {
  return {name_of(found.origin, jit::kOriginNames), jit::cache_key(of), found.binary->lowered_name,
          to_bytes(found.binary->image)};
}

/// None: it has to be compiled.
std::optional<FoundFields> look_up(const std::string& source, const std::string& name_expression,
                                   const fs::path& wheel) {
  const jit::Program wanted = program(source, name_expression);
  std::optional<jit::Found> found;
  {
    const nb::gil_scoped_release release;
    found = jit::look_up(wanted, wheel);
  }
  jit::warn_of_cache();
  if (!found) return std::nullopt;
  return to_tuple(*found, wanted);
}

/// Keeps what was compiled.
FoundFields keep(const std::string& source, const std::string& name_expression,
                 const fs::path& wheel, const std::string& name, const nb::bytes& image) {
  const jit::Program compiled = program(source, name_expression);
  jit::Binary binary{.image = std::string(image.c_str(), image.size()), .lowered_name = name};
  jit::Found kept;
  {
    const nb::gil_scoped_release release;
    kept = jit::keep(compiled, wheel, std::move(binary));
  }
  jit::warn_of_cache();
  return to_tuple(kept, compiled);
}

}  // namespace

void bind(nb::module_& m) {
  using namespace nb::literals;
  m.def("sycl_params", &params_of, "plan"_a, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a,
        "softmax_scale"_a, "work_groups"_a = 0);
  m.def("sycl_lists", [](const Plan& plan) { return to_bytes(lists(plan)); }, "plan"_a);
  m.def(
      "sycl_schedule",
      [](const Plan& plan, uint64_t lists, uint64_t counter) {
        return to_bytes(schedule(plan, lists, counter));
      },
      "plan"_a, "lists"_a, "counter"_a);
  m.def("sycl_kernel", &kernel_of, "plan"_a, "count"_a = false);
  m.def("sycl_shape", &shape, "kernel"_a, "dtype"_a, "head_dim"_a, "head_dim_v"_a);
  m.def("sycl_look_up", &look_up, "source"_a, "name_expression"_a, "wheel"_a);
  m.def("sycl_keep", &keep, "source"_a, "name_expression"_a, "wheel"_a, "name"_a, "image"_a);
  nb::list flags, kernels;
  for (const char* flag : jit::kSyclFlags) flags.append(flag);
  for (const char* name : kSyclKernelNames) kernels.append(name);
  m.attr("SYCL_FLAGS") = nb::tuple(flags);
  m.attr("SYCL_KERNELS") = nb::tuple(kernels);
}

}  // namespace exactile::sycl
