// src/python/jit_bindings.hpp - bindings of the cache of compiled kernels.
#pragma once

#include <nanobind/nanobind.h>

namespace exactile::jit {

void bind(nanobind::module_& m);

/// Gives a RuntimeWarning, once in a process, where the cache directory could not be used, and
/// where EXACTILE_JIT_DUMP lacks a disassembler. After every call that may have looked for a
/// kernel; with the GIL, and without locks.
void warn_of_cache();

}  // namespace exactile::jit
