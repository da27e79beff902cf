// src/python/run_options.hpp - the options of a run, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// As the caller gave them, and what keeps the arrays among them.
struct ReadOptions {
  RunOptions options;
  std::vector<nanobind::object> keep = {};
};

/// `options`: a dict by name; what it does not name has its default. Throws nanobind::type_error
/// for a name that there is not and for a value of another type, and what read_array() throws.
ReadOptions read_options(const Plan& plan, nanobind::handle options);

}  // namespace exactile
