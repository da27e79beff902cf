// src/python/run_options.hpp - the options of a run, as Python gives them.
#pragma once

#include <nanobind/nanobind.h>

#include "base/plan.hpp"
#include "base/run_args.hpp"

namespace exactile {

/// `options`: a dict by name; what it does not name has its default. Throws nanobind::type_error
/// for a name that there is not and for a value of another type.
RunOptions read_options(const Plan& plan, nanobind::handle options);

}  // namespace exactile
