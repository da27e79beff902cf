// src/cuda/kernels.cpp - shapes and sources of the CUDA kernels. A row of support.def without
// Traits in every family does not compile.
#include "cuda/kernels.hpp"

#include <algorithm>
#include <cstdlib>
#include <exactile/cuda/planner_params.hpp>
#include <exactile/cuda/rows.hpp>
#include <exactile/cuda/sm80/traits.hpp>
#include <exactile/cuda/sm90/traits.hpp>
#include <stdexcept>

#include "base/kernel_rows.hpp"
#include "base/policies.hpp"

namespace exactile::cuda {
namespace {

/// By Family, MaskKind.
struct Shapes {
  Shape of[kNumFamilies][kNumMaskKinds];
};

template <class Traits>
constexpr Shape shape_of_traits() {
  int32_t chunk = 0, box_n = 0;
  if constexpr (requires { Traits::kChunk; }) {
    chunk = Traits::kChunk;
    box_n = Traits::kBoxN;
  }
  return {.block_m = Traits::kBlockM,
          .block_n = Traits::kBlockN,
          .threads = Traits::kThreads,
          .shared_bytes = static_cast<int32_t>(Traits::kSharedBytes),
          .chunk = chunk,
          .box_n = box_n};
}

const std::vector<KernelRow<Shapes>>& rows() {
  static const auto all = kernel_rows<Backend::kCuda, Shapes>(
      []<class Element, int kHeadDim, int kHeadDimV>() -> Shapes {
        constexpr auto kFull = MaskKind::kFull, kMasked = MaskKind::kMasked,
                       kPacked = MaskKind::kPacked;
#define EXACTILE_FAMILY(Family, name, ...)                                 \
  {shape_of_traits<name::Traits<Element, kHeadDim, kHeadDimV, kFull>>(),   \
   shape_of_traits<name::Traits<Element, kHeadDim, kHeadDimV, kMasked>>(), \
   shape_of_traits<name::Traits<Element, kHeadDim, kHeadDimV, kPacked>>()},
        return {{EXACTILE_CUDA_FAMILIES(EXACTILE_FAMILY)}};
#undef EXACTILE_FAMILY
      });
  return all;
}

constexpr const char* kMaskKindNames[kNumMaskKinds] = {"kFull", "kMasked", "kPacked"};

std::string traits_name(const KernelSpec& spec, const std::string& family) {
  const InstanceSpec& of = spec.instance;
  std::string name = family + "Traits<" + element_name(of.dtype) + ", " +
                     std::to_string(of.head_dim) + ", " + std::to_string(of.head_dim_v) +
                     ", exactile::cuda::MaskKind::" + kMaskKindNames[static_cast<int>(spec.mask)];
  const bool plain = of.layout == KvLayoutKind::kContiguous && of.scores == ScoresKind::kPlain;
  if (!plain || of.splits) {
    name += std::string(", exactile::") + name_of(of.layout, kKvLayoutNames) +
            ", exactile::" + name_of(of.scores, kScoresNames);
  }
  if (of.splits) name += ", exactile::SplitKeys";
  return name + ">";
}

}  // namespace

MaskKind mask_kind(const Mask& mask, bool packs_sequences) {
  if (packs_sequences) return MaskKind::kPacked;
  return mask.left < 0 && mask.right < 0 ? MaskKind::kFull : MaskKind::kMasked;
}

Shape shape_of(Family family, MaskKind mask, Dtype dtype, int64_t head_dim, int64_t head_dim_v) {
  if (const Shapes* shapes = find_row(rows(), dtype, head_dim, head_dim_v)) {
    return shapes->of[static_cast<int>(family)][static_cast<int>(mask)];
  }
  throw std::invalid_argument("exactile: cuda: no kernel for this dtype and head_dim");
}

namespace {

Shape shape_of_kernel(const KernelSpec& spec) {
  const InstanceSpec& of = spec.instance;
  return shape_of(spec.family, spec.mask, of.dtype, of.head_dim, of.head_dim_v);
}
Shape shape_of_kernel(const PlannerSpec&) { return {.threads = kPlannerThreads}; }
Shape shape_of_kernel(const MergeSplitsSpec&) { return {.threads = kRowThreads}; }
Shape shape_of_kernel(const MergeSpec&) { return {.threads = kRowThreads}; }
Shape shape_of_kernel(const AppendSpec&) { return {.threads = kRowThreads}; }

jit::Program program_of(const KernelSpec& spec) {
  const PolicySpec& wanted = spec.instance.policy;
  const std::string name = name_of(spec.family, kFamilyNames);
  const std::string family = "exactile::cuda::" + name + "::";
  std::string source = "#include <exactile/cuda/" + name +
                       "/kernel.hpp>\n"
                       "#include <exactile/scheduler.hpp>\n";
  const PolicySource policy = policy_of(wanted.scheduler, wanted.user.get());
  source += policy.source;
  return {.source = std::move(source),
          .name_expression = family + "prefill_kernel<" + traits_name(spec, family) + ", " +
                             policy.name + ", exactile::cuda::" + name_of(spec.probe, kProbeNames) +
                             ">"};
}

jit::Program program_of(const PlannerSpec&) {
  return {.source = "#include <exactile/cuda/planner.hpp>\n",
          .name_expression = "exactile::cuda::plan_tiles"};
}

/// `name`: "merge", for merge_kernel in merge.hpp.
jit::Program program_of_rows(const std::string& name, const std::string& arguments) {
  return {.source = "#include <exactile/cuda/" + name + ".hpp>\n",
          .name_expression = "exactile::cuda::" + name + "_kernel<" + arguments + ">"};
}
jit::Program program_of(const MergeSplitsSpec& spec) {
  return program_of_rows("merge_splits", element_name(spec.dtype));
}
jit::Program program_of(const MergeSpec& spec) {
  return program_of_rows("merge", element_name(spec.dtype));
}
jit::Program program_of(const AppendSpec& spec) {
  return program_of_rows("append", element_name(spec.from) + ", " + element_name(spec.to));
}

}  // namespace

Shape shape_of(const AnySpec& spec) {
  return std::visit([](const auto& of) { return shape_of_kernel(of); }, spec);
}

jit::Program make_program(const AnySpec& spec, const std::string& architecture) {
  jit::Program program = std::visit([](const auto& of) { return program_of(of); }, spec);
  program.architecture = architecture;
  return program;
}

FamilyTraits traits_of(Family family) {
#define EXACTILE_FAMILY(Family, name, ...) {__VA_ARGS__},
  constexpr FamilyTraits kFamilies[] = {EXACTILE_CUDA_FAMILIES(EXACTILE_FAMILY)};
#undef EXACTILE_FAMILY
  return kFamilies[static_cast<int>(family)];
}

std::optional<Family> best_family(int capability, bool any_array) {
  for (int i = kNumFamilies - 1; i >= 0; --i) {
    const FamilyTraits traits = traits_of(static_cast<Family>(i));
    if (traits.runs_on(capability) && !(any_array && traits.needs_tma)) {
      return static_cast<Family>(i);
    }
  }
  return std::nullopt;
}

std::optional<Family> family_from_environment() {
  const char* const wanted = std::getenv("EXACTILE_CUDA_FAMILY");
  if (!wanted || !*wanted) return std::nullopt;
  return from_name<Family>(wanted, kFamilyNames, "EXACTILE_CUDA_FAMILY");
}

std::vector<jit::Program> shipped_programs() {
  std::vector<KernelSpec> specs;
  for (const KernelRow<Shapes>& row : rows()) {
    for (int family = 0; family < kNumFamilies; ++family) {
      for (const MaskKind mask : {MaskKind::kFull, MaskKind::kMasked, MaskKind::kPacked}) {
        for (int scheduler = 0; scheduler < kNumSchedulers; ++scheduler) {
          // The planner packs unasked for some policies; others are compiled when they are asked
          // for.
          if (mask == MaskKind::kPacked && !packs(static_cast<SchedulerKind>(scheduler))) continue;
          specs.push_back(
              {.instance = {.dtype = row.dtype,
                            .head_dim = row.head_dim,
                            .head_dim_v = row.head_dim_v,
                            .policy = {.scheduler = static_cast<SchedulerKind>(scheduler)}},
               .family = static_cast<Family>(family),
               .mask = mask});
        }
      }
    }
  }
  // What takes longest to compile first: workers that share them out end together.
  std::ranges::stable_sort(specs, std::ranges::greater{}, [](const KernelSpec& spec) {
    return spec.instance.head_dim + spec.instance.head_dim_v;
  });
  std::vector<jit::Program> programs;
  for (const KernelSpec& spec : specs) {
    programs.push_back(make_program(spec, traits_of(spec.family).architecture));
  }
  for (int family = 0; family < kNumFamilies; ++family) {
    const std::string architecture = traits_of(static_cast<Family>(family)).architecture;
    programs.push_back(make_program(PlannerSpec{}, architecture));
  }
  return programs;
}

}  // namespace exactile::cuda
