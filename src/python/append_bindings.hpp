// src/python/append_bindings.hpp - appending to a cache, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile {

void bind_append(nanobind::module_& m);

}  // namespace exactile
