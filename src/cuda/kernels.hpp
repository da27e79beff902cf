// src/cuda/kernels.hpp - which kernels there are: support.def's rows, their shapes, their sources.
#pragma once

#include <exactile/cuda/families.def>
#include <exactile/cuda/params.hpp>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/kernel_spec.hpp"
#include "jit/program.hpp"

namespace exactile::cuda {

/// Kernels for one family of GPUs: kSm80, ... (families.def).
#define EXACTILE_FAMILY(Family, ...) k##Family,
enum class Family : unsigned char { EXACTILE_CUDA_FAMILIES(EXACTILE_FAMILY) };
#undef EXACTILE_FAMILY
#define EXACTILE_FAMILY(Family, name, ...) #name,
inline constexpr const char* kFamilyNames[] = {EXACTILE_CUDA_FAMILIES(EXACTILE_FAMILY)};
#undef EXACTILE_FAMILY
inline constexpr int kNumFamilies = std::size(kFamilyNames);

/// The columns of families.def.
struct FamilyTraits {
  int capability;
  bool newer;
  const char* architecture;
  bool needs_tma, packing_pays, splits_tiles;

  /// Whether it runs on GPUs of this compute capability (90: 9.0).
  constexpr bool runs_on(int given) const {
    return given == capability || (newer && given > capability);
  }
};
FamilyTraits traits_of(Family family);

/// The fastest that runs on a compute capability, with any array or with those that TMA takes.
std::optional<Family> best_family(int capability, bool any_array = false);

/// What the host needs to know of a kernel's Traits.
struct Shape {
  int32_t block_m = 0;
  int32_t block_n = 0;
  int32_t threads = 0;
  int32_t shared_bytes = 0;  ///< dynamic
  int32_t chunk = 0;         ///< columns of a TMA box and of its swizzle; 0 in families without TMA
  int32_t box_n = 0;         ///< keys in a TMA box
};

/// exactile/cuda/probe.hpp, by the names of the types there.
enum class Probe : unsigned char { kNoProbe, kTimeline };
inline constexpr const char* kProbeNames[] = {"NoProbe", "Timeline"};
inline constexpr int kNumProbes = std::size(kProbeNames);

struct KernelSpec {
  InstanceSpec instance;
  Family family;
  MaskKind mask;
  Probe probe = Probe::kNoProbe;  ///< any other is compiled when it is first asked for

  friend auto operator<=>(const KernelSpec&, const KernelSpec&) = default;
};

/// Which kernel a mask needs.
MaskKind mask_kind(const Mask& mask, bool packs_sequences);

/// Throws std::invalid_argument for what support.def does not list.
Shape shape_of(Family family, MaskKind mask, Dtype dtype, int64_t head_dim, int64_t head_dim_v);

/// The kernel that plans on the device.
struct PlannerSpec {
  friend auto operator<=>(const PlannerSpec&, const PlannerSpec&) = default;
};

/// The kernel that merges the parts of split tiles.
struct MergeSplitsSpec {
  Dtype dtype;

  friend auto operator<=>(const MergeSplitsSpec&, const MergeSplitsSpec&) = default;
};

using AnySpec = std::variant<KernelSpec, PlannerSpec, MergeSplitsSpec, MergeSpec, AppendSpec>;

/// Throws as shape_of().
Shape shape_of(const AnySpec& spec);

jit::Program make_program(const AnySpec& spec, const std::string& architecture);

/// EXACTILE_CUDA_FAMILY, for tests and comparisons.
std::optional<Family> family_from_environment();

/// What the wheel ships, for sm_90a and for sm_80, which 8.6 and 8.9 run too: support.def's rows
/// under both kinds of mask and every scheduler, and the planner.
std::vector<jit::Program> shipped_programs();

}  // namespace exactile::cuda
