// src/base/kernel_spec.hpp - which kernel, and which instance of it: the keys by which loaded
// kernels are found. A kernel's source is made where it is not loaded yet.
#pragma once

#include <compare>
#include <memory>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// A shipped policy, or a user's own in its place. Two of those are one where their text is.
struct PolicySpec {
  SchedulerKind scheduler;
  std::shared_ptr<const UserScheduler> user = nullptr;

  friend bool operator==(const PolicySpec& a, const PolicySpec& b) { return (a <=> b) == 0; }
  friend std::strong_ordering operator<=>(const PolicySpec& a, const PolicySpec& b) {
    if (a.user && b.user) {
      return a.user == b.user ? std::strong_ordering::equal : *a.user <=> *b.user;
    }
    if (a.user || b.user) return (a.user != nullptr) <=> (b.user != nullptr);
    return a.scheduler <=> b.scheduler;
  }
};

/// exactile/kv_layout.hpp and exactile/scores.hpp, by the names of the types there.
enum class KvLayoutKind : unsigned char { kContiguous, kPaged };
inline constexpr const char* kKvLayoutNames[] = {"ContiguousKv", "PagedKv"};
enum class ScoresKind : unsigned char { kPlain, kSinks, kGeneral };
inline constexpr const char* kScoresNames[] = {"PlainScores", "SinkScores", "GeneralScores"};
inline constexpr int kNumScores = std::size(kScoresNames);

/// What the kernels of every backend are instantiated for. A backend's own spec has more.
struct InstanceSpec {
  Dtype dtype;
  int32_t head_dim;
  int32_t head_dim_v;
  PolicySpec policy;
  KvLayoutKind layout = KvLayoutKind::kContiguous;
  ScoresKind scores = ScoresKind::kPlain;
  bool splits = false;  ///< SplitKeys of exactile/key_splits.hpp

  friend auto operator<=>(const InstanceSpec&, const InstanceSpec&) = default;
};

/// The kernel that merges results of a dtype.
struct MergeSpec {
  Dtype dtype;

  friend auto operator<=>(const MergeSpec&, const MergeSpec&) = default;
};

/// The kernel that writes rows of one dtype into a cache of another.
struct AppendSpec {
  Dtype from, to;

  friend auto operator<=>(const AppendSpec&, const AppendSpec&) = default;
};

inline ScoresKind scores_kind(const RunOptions& options) {
  if (options.softcap > 0 || options.alibi_slopes) return ScoresKind::kGeneral;
  return options.sinks ? ScoresKind::kSinks : ScoresKind::kPlain;
}

inline InstanceSpec instance_spec(const Plan& plan, const RunOptions& options = {}) {
  return {.dtype = plan.dtype,
          .head_dim = plan.head_dim,
          .head_dim_v = plan.head_dim_v,
          .policy = {.scheduler = plan.scheduler, .user = plan.user_scheduler},
          .layout = plan.is_paged() ? KvLayoutKind::kPaged : KvLayoutKind::kContiguous,
          .scores = scores_kind(options),
          .splits = plan.splits_keys()};
}

}  // namespace exactile
