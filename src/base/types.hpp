// src/base/types.hpp - enums that all host code shares (dtypes, policies, backends) and their
// names.
#pragma once

#include <compare>
#include <cstdint>
#include <exactile/policies.def>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace exactile {

/// Of arrays. The first kNumDtypes are what attention is computed in.
enum class Dtype : unsigned char { kFloat32, kFloat16, kBfloat16, kInt32, kInt64 };
inline constexpr const char* kDtypeNames[] = {"float32", "float16", "bfloat16", "int32", "int64"};
inline constexpr int kNumArrayDtypes = std::size(kDtypeNames);
inline constexpr int kNumDtypes = 3;
constexpr int dtype_bytes(Dtype dtype) {
  constexpr int kBytes[kNumArrayDtypes] = {4, 2, 2, 4, 8};
  return kBytes[static_cast<int>(dtype)];
}

/// A shipped policy: kIndividual, ... (policies.hpp has their classes).
#define EXACTILE_ENUMERATOR(Policy, packs) k##Policy,
enum class SchedulerKind : unsigned char { EXACTILE_POLICIES(EXACTILE_ENUMERATOR) };
#undef EXACTILE_ENUMERATOR
#define EXACTILE_NAME(Policy, packs) #Policy,
inline constexpr const char* kSchedulerNames[] = {EXACTILE_POLICIES(EXACTILE_NAME)};
#undef EXACTILE_NAME
inline constexpr int kNumSchedulers = std::size(kSchedulerNames);
/// What "auto" is.
inline constexpr SchedulerKind kDefaultScheduler = SchedulerKind::kValidOnlyPersistent;

/// In the order of ListOrder.
inline constexpr const char* kOrderNames[] = {"natural", "longest_first", "sequence_major",
                                              "head_major"};

enum class Backend : unsigned char { kCpu, kCuda, kSycl };
inline constexpr const char* kBackendNames[] = {"cpu", "cuda", "sycl"};

/// Kernels of the sycl backend, which a device's abilities choose between.
enum class SyclKernel : unsigned char { kPortable, kXmxXeHpc, kXmxXe2, kXmxEmulated };
inline constexpr const char* kSyclKernelNames[] = {"portable", "xmx_xe_hpc", "xmx_xe2",
                                                   "xmx_emulated"};
inline constexpr int kNumSyclKernels = std::size(kSyclKernelNames);

/// A user's own TileScheduler, compiled with the kernel. Its Params are those of the shipped policy
/// `like`.
struct UserScheduler {
  std::string name;
  std::string source;
  SchedulerKind like;

  friend auto operator<=>(const UserScheduler&, const UserScheduler&) = default;
};

/// Position of `name` in `names`, or a ValueError that lists them.
template <std::size_t kSize>
int index_of(std::string_view name, const char* const (&names)[kSize], const char* what) {
  std::string list;
  for (std::size_t i = 0; i < kSize; ++i) {
    if (name == names[i]) return static_cast<int>(i);
    list += (i ? ", " : "") + std::string(names[i]);
  }
  throw std::invalid_argument(std::string(what) + ": expected one of " + list + ", got '" +
                              std::string(name) + "'");
}

/// The `Enum` whose name is `name`.
template <class Enum, std::size_t kSize>
Enum from_name(std::string_view name, const char* const (&names)[kSize], const char* what) {
  return static_cast<Enum>(index_of(name, names, what));
}

template <class Enum, std::size_t kSize>
const char* name_of(Enum value, const char* const (&names)[kSize]) {
  return names[static_cast<int>(value)];
}

}  // namespace exactile
