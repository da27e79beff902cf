// src/sycl/kernels.cpp - shapes and sources of the SYCL kernels. A row of support.def without
// portable Traits does not compile.
#include "sycl/kernels.hpp"

#include <exactile/sycl/portable/traits.hpp>
#include <exactile/sycl/rows.hpp>
#include <exactile/sycl/xmx/traits.hpp>
#include <iterator>
#include <optional>
#include <stdexcept>

#include "base/kernel_rows.hpp"
#include "base/policies.hpp"

namespace exactile::sycl {
namespace {

/// By SyclKernel.
struct Shapes {
  std::optional<Shape> of[kNumSyclKernels];
};

template <class Traits, int kRegisters = 128>
constexpr Shape shape_of_traits() {
  return {.block_m = Traits::kBlockM,
          .block_n = Traits::kBlockN,
          .row_step = Traits::kSubGroupRows,
          .threads = Traits::kThreads,
          .local_bytes = Traits::kLocalBytes,
          .registers = kRegisters,
          .page_step = Traits::kPageStep};
}

template <class Element, int kHeadDim, int kHeadDimV>
Shapes make_shapes() {
  Shapes shapes{{shape_of_traits<portable::Traits<Element, kHeadDim, kHeadDimV>>()}};
  if constexpr (!SameAs<Element, float>) {
    using XeHpc = xmx::Traits<Element, kHeadDim, kHeadDimV, xmx::XeHpc>;
    using Xe2 = xmx::Traits<Element, kHeadDim, kHeadDimV, xmx::Xe2>;
    const auto shape = [&](SyclKernel kernel) -> auto& {
      return shapes.of[static_cast<int>(kernel)];
    };
    shape(SyclKernel::kXmxXeHpc) = shape_of_traits<XeHpc, XeHpc::kRegisters>();
    shape(SyclKernel::kXmxXe2) = shape_of_traits<Xe2, Xe2::kRegisters>();
    shape(SyclKernel::kXmxEmulated) = shape_of_traits<XeHpc>();
  }
  return shapes;
}

const std::vector<KernelRow<Shapes>>& rows() {
  static const auto all =
      kernel_rows<Backend::kSycl, Shapes>([]<class Element, int kHeadDim, int kHeadDimV>() {
        return make_shapes<Element, kHeadDim, kHeadDimV>();
      });
  return all;
}

/// Where the templates of a kernel lie, and the template arguments of an instance besides the row.
struct Family {
  const char* name;              ///< folder and namespace
  const char* traits_arguments;  ///< between head dims and layout: ", Architecture"
  const char* macros;            ///< before the headers
};

/// By SyclKernel. A kernel for some devices only is a line here, its name in kSyclKernelNames, its
/// Traits in add_row(), and a device's choice of it in _choose_kernel() of _sycl.py.
constexpr Family kFamilies[] = {
    {.name = "portable", .traits_arguments = "", .macros = ""},
    {.name = "xmx", .traits_arguments = ", exactile::sycl::xmx::XeHpc", .macros = ""},
    {.name = "xmx", .traits_arguments = ", exactile::sycl::xmx::Xe2", .macros = ""},
    {.name = "xmx",
     .traits_arguments = ", exactile::sycl::xmx::XeHpc",
     .macros = "#define EXACTILE_XMX_EMULATED\n"},
};
static_assert(std::size(kFamilies) == kNumSyclKernels);

std::string traits_name(const KernelSpec& spec, const Family& family) {
  const InstanceSpec& of = spec.instance;
  return std::string("exactile::sycl::") + family.name + "::Traits<" + element_name(of.dtype) +
         ", " + std::to_string(of.head_dim) + ", " + std::to_string(of.head_dim_v) +
         family.traits_arguments + ", exactile::" + name_of(of.layout, kKvLayoutNames) +
         ", exactile::" + name_of(of.scores, kScoresNames) + ">";
}

Loadable loadable_of(const KernelSpec& spec) {
  const InstanceSpec& of = spec.instance;
  const Shape shape = shape_of(
      spec.kernel, {.dtype = of.dtype, .head_dim = of.head_dim, .head_dim_v = of.head_dim_v});
  return {.program = make_program(spec),
          .kernel = spec.kernel,
          .dtype = of.dtype,
          .threads = shape.threads,
          .local_bytes = shape.local_bytes,
          .registers = shape.registers};
}

/// `name`: "merge", for merge_kernel in merge.hpp. `dtype`: that the device has to have.
Loadable kernel_of_rows(const std::string& name, const std::string& arguments, Dtype dtype) {
  return {.program = {.source = "#include <exactile/sycl/" + name + ".hpp>\n",
                      .name_expression = "exactile::sycl::" + name + "_kernel<" + arguments + ">",
                      .architecture = "",
                      .language = jit::Language::kSycl},
          .kernel = SyclKernel::kPortable,
          .dtype = dtype,
          .threads = Rows::kThreads,
          .local_bytes = 0,
          .registers = 128};
}

Loadable loadable_of(const MergeSpec& spec) {
  return kernel_of_rows("merge", element_name(spec.dtype), spec.dtype);
}

Loadable loadable_of(const AppendSpec& spec) {
  const bool converts_fp16 =
      spec.from != spec.to && (spec.from == Dtype::kFloat16 || spec.to == Dtype::kFloat16);
  return kernel_of_rows("append", element_name(spec.from) + ", " + element_name(spec.to),
                        converts_fp16 ? Dtype::kFloat16 : Dtype::kFloat32);
}

}  // namespace

Loadable loadable(const AnySpec& spec) {
  return std::visit([](const auto& of) { return loadable_of(of); }, spec);
}

std::optional<Shape> find_shape(SyclKernel kernel, const Wanted& wanted) {
  const Shapes* const shapes = find_row(rows(), wanted.dtype, wanted.head_dim, wanted.head_dim_v);
  if (!shapes) return std::nullopt;
  const std::optional<Shape>& shape = shapes->of[static_cast<int>(kernel)];
  return shape && wanted.page_size % shape->page_step == 0 ? shape : std::nullopt;
}

Shape shape_of(SyclKernel kernel, const Wanted& wanted) {
  if (const auto shape = find_shape(kernel, wanted)) return *shape;
  std::string refused = std::string("exactile: sycl: the ") + name_of(kernel, kSyclKernelNames) +
                        " kernel does not take " + name_of(wanted.dtype, kDtypeNames) +
                        " with head dims (" + std::to_string(wanted.head_dim) + ", " +
                        std::to_string(wanted.head_dim_v) + ")";
  if (wanted.page_size > 0) {
    refused += " in pages of " + std::to_string(wanted.page_size) + " keys";
    const Wanted packed{wanted.dtype, wanted.head_dim, wanted.head_dim_v};
    if (const auto shape = find_shape(kernel, packed)) {
      refused += ", but of multiples of " + std::to_string(shape->page_step);
    }
  }
  throw std::invalid_argument(refused);
}

jit::Program make_program(const KernelSpec& spec) {
  const Family& family = kFamilies[static_cast<int>(spec.kernel)];
  std::string source = std::string(family.macros) +
                       "#include <exactile/scheduler.hpp>\n"
                       "#include <exactile/sycl/" +
                       family.name + "/kernel.hpp>\n";
  const PolicySpec& wanted = spec.instance.policy;
  const PolicySource policy = policy_of(wanted.scheduler, wanted.user.get());
  source += policy.source;
  return {.source = std::move(source),
          .name_expression = std::string("exactile::sycl::") + family.name + "::prefill_kernel<" +
                             traits_name(spec, family) + ", " + policy.name + ", " +
                             (spec.count ? "true" : "false") + ">",
          .architecture = "",
          .language = jit::Language::kSycl};
}

std::vector<jit::Program> shipped_programs() {
  std::vector<jit::Program> programs;
  for (const KernelRow<Shapes>& row : rows()) {
    for (int scheduler = 0; scheduler < kNumSchedulers; ++scheduler) {
      programs.push_back(make_program(
          {.instance = {.dtype = row.dtype,
                        .head_dim = row.head_dim,
                        .head_dim_v = row.head_dim_v,
                        .policy = {.scheduler = static_cast<SchedulerKind>(scheduler)}},
           .kernel = SyclKernel::kPortable}));
    }
  }
  for (int i = 0; i < kNumDtypes; ++i) {
    const auto dtype = static_cast<Dtype>(i);
    programs.push_back(loadable(MergeSpec{dtype}).program);
    programs.push_back(loadable(AppendSpec{dtype, dtype}).program);
  }
  return programs;
}

}  // namespace exactile::sycl
