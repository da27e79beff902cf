// src/jit/dump.hpp - what is compiled at run time, as files to read (EXACTILE_JIT_DUMP), and with
// the lines that it comes from (EXACTILE_JIT_LINEINFO).
#pragma once

#include <string>

#include "jit/program.hpp"

namespace exactile::jit {

/// `program`, with line information where that is asked for: a flag more, so another key. Throws
/// std::invalid_argument for a value but 0 and 1.
Program with_line_info(Program program);

/// Source, `ptx` (CUDA) and binary, and what nvdisasm says of a cubin. Does nothing where
/// EXACTILE_JIT_DUMP names no folder. Throws std::invalid_argument where nothing can be written
/// there.
void dump(const Program& program, const std::string& key, const Binary& binary,
          const std::string& ptx);

}  // namespace exactile::jit
