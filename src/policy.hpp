// src/policy.hpp - the scheduler of a kernel that is compiled at run time: its name and its source.
#pragma once

#include <string>

#include "types.hpp"

namespace exactile {

struct Policy {
  std::string name;    ///< with its namespace
  std::string source;  ///< behind the headers of the shipped policies; empty for one of these
};

/// `user` instead of `scheduler`, if given.
inline Policy policy_of(SchedulerKind scheduler, const UserScheduler* user) {
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
