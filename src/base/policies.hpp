// src/base/policies.hpp - the classes of the shipped policies, and the source of a policy that is
// compiled at run time.
#pragma once

#include <exactile/policies.def>
#include <exactile/scheduler.hpp>
#include <string>

#include "base/types.hpp"

namespace exactile {

/// f.template operator()<Policy>() with the class of a shipped policy.
template <class F>
constexpr decltype(auto) with_policy(SchedulerKind kind, F f) {
  switch (kind) {
#define EXACTILE_CASE(Policy, packs) \
  case SchedulerKind::k##Policy:     \
    return f.template operator()<Policy>();
    EXACTILE_POLICIES(EXACTILE_CASE)
#undef EXACTILE_CASE
  }
  __builtin_unreachable();
}

template <class Params>
constexpr bool has_params(SchedulerKind kind) {
  return with_policy(kind, []<class Policy>() { return SameAs<typename Policy::Params, Params>; });
}

/// Whether a policy walks a tile list; else the padded grid.
constexpr bool has_list(SchedulerKind kind) { return !has_params<PaddedGrid>(kind); }

/// Whether its work-groups share a counter.
constexpr bool has_counter(SchedulerKind kind) { return has_params<CountedList>(kind); }

/// Whether the planner may pack for it by default.
constexpr bool packs(SchedulerKind kind) {
#define EXACTILE_PACKS(Policy, packs) packs,
  constexpr bool kPacks[] = {EXACTILE_POLICIES(EXACTILE_PACKS)};
#undef EXACTILE_PACKS
  return kPacks[static_cast<int>(kind)];
}

/// Of a kernel that is compiled at run time.
struct PolicySource {
  std::string name;    ///< with its namespace
  std::string source;  ///< behind the headers of the shipped policies; empty for one of these
};

/// `user` instead of `scheduler`, if given.
inline PolicySource policy_of(SchedulerKind scheduler, const UserScheduler* user) {
  const auto shipped = [](SchedulerKind kind) {
    return std::string("exactile::") + name_of(kind, kSchedulerNames);
  };
  if (!user) return {.name = shipped(scheduler), .source = ""};
  return {.name = user->name,
          .source = "#line 1 \"" + user->name + "\"\n" + user->source + "\n" +
                    "static_assert(exactile::TileScheduler<" + user->name + ">);\n" +
                    "static_assert(exactile::SameAs<" + user->name + "::Params, " +
                    shipped(user->like) + "::Params>);\n"};
}

}  // namespace exactile
