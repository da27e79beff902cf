// src/python/merge_bindings.hpp - merging of results, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile {

void bind_merge(nanobind::module_& m);

}  // namespace exactile
