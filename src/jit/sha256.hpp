// src/jit/sha256.hpp - SHA-256, for cache keys and to notice damaged cache entries.
#pragma once

#include <string>
#include <string_view>

namespace exactile::jit {

/// Digest as 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace exactile::jit
