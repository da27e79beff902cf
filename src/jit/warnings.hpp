// src/jit/warnings.hpp - what Python's callers are to be warned of, once in a process.
#pragma once

#include <string>

namespace exactile::jit {

enum class Topic : unsigned char { kCacheDirectory, kDisassembler };

/// The first text of a topic is kept until it is taken, others are dropped. Thread-safe.
void warn_once(Topic topic, std::string text);

/// A warning that has not been taken yet, or empty.
std::string take_warning();

}  // namespace exactile::jit
