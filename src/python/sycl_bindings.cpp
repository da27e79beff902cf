// src/python/sycl_bindings.cpp - bindings: the runtime's table in, programs out, SPIR-V and loaded
// kernels in.
#include "python/sycl_bindings.hpp"

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "jit/cache.hpp"
#include "python/jit_bindings.hpp"
#include "sycl/kernels.hpp"
#include "sycl/launch.hpp"
#include "sycl/loaded_kernels.hpp"

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

/// Work-items, local memory, registers, source and name expression of a kernel.
using KernelFields = std::tuple<int, int, int, std::string, std::string>;

KernelFields fields_of(const Loadable& kernel) {
  return {kernel.threads, kernel.local_bytes, kernel.registers, kernel.program.source,
          kernel.program.name_expression};
}

/// Those of a plan's kernel, for tests and benchmarks. `general`: with general scores.
KernelFields kernel_of(const Plan& plan, bool general) {
  KernelSpec spec{.instance = instance_spec(plan), .kernel = plan.sycl_kernel};
  if (general) spec.instance.scores = ScoresKind::kGeneral;
  return fields_of(loadable(spec));
}

/// KernelLoader: the SYCL compiler is a process of its own, which _sycl.py starts. A queue goes
/// there as the capsule that dpctl makes its own of.
const Kernel* load_in_python(const Queue* queue, const Loadable& kernel) {
  const nb::gil_scoped_acquire gil;
  const nb::object address =
      nb::module_::import_("exactile._sycl")
          .attr("load_kernel")(nb::capsule(queue, "SyclQueueRef"),
                               name_of(kernel.kernel, kSyclKernelNames),
                               name_of(kernel.dtype, kDtypeNames), fields_of(kernel));
  return reinterpret_cast<const Kernel*>(nb::cast<uint64_t>(address));
}

/// `table`: the capsule of that name in exactile-sycl's module, or None.
void use_runtime(nb::handle table) {
  const bool is_table = PyCapsule_IsValid(table.ptr(), kTableCapsule);
  set_runtime(
      is_table ? static_cast<const RuntimeTable*>(PyCapsule_GetPointer(table.ptr(), kTableCapsule))
               : nullptr);
  set_kernel_loader(load_in_python);
}

/// Argument 1 of a plan's kernel, for tests.
nb::bytes schedule_of(const Plan& plan, uint64_t counter) {
  return to_bytes(schedule(plan, {.cu_seqlens_q = nullptr,
                                  .cu_seqlens_k = nullptr,
                                  .records = nullptr,
                                  .counter = reinterpret_cast<int32_t*>(counter)}));
}

/// (block_m, block_n, threads, local_bytes, registers), or None where the kernel has no such row or
/// does not take the pages.
std::optional<std::tuple<int, int, int, int, int>> shape(const std::string& kernel,
                                                         const std::string& dtype, int64_t head_dim,
                                                         int64_t head_dim_v, int64_t page_size) {
  const auto found = find_shape(kernel_named(kernel), {.dtype = dtype_named(dtype),
                                                       .head_dim = head_dim,
                                                       .head_dim_v = head_dim_v,
                                                       .page_size = page_size});
  if (!found) return std::nullopt;
  return std::tuple(found->block_m, found->block_n, found->threads, found->local_bytes,
                    found->registers);
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
  m.def("sycl_use_runtime", &use_runtime, "table"_a.none());
  m.def("sycl_check_process", [] { runtime(); });
  m.def("sycl_schedule", &schedule_of, "plan"_a, "counter"_a);
  m.def("sycl_kernel", &kernel_of, "plan"_a, "general"_a = false);
  m.def("sycl_shape", &shape, "kernel"_a, "dtype"_a, "head_dim"_a, "head_dim_v"_a,
        "page_size"_a = 0);
  m.def("sycl_look_up", &look_up, "source"_a, "name_expression"_a, "wheel"_a);
  m.def("sycl_keep", &keep, "source"_a, "name_expression"_a, "wheel"_a, "name"_a, "image"_a);
  nb::list flags, kernels;
  for (const char* flag : jit::kSyclFlags) flags.append(flag);
  for (const char* name : kSyclKernelNames) kernels.append(name);
  m.attr("SYCL_FLAGS") = nb::tuple(flags);
  m.attr("SYCL_KERNELS") = nb::tuple(kernels);
}

}  // namespace exactile::sycl
