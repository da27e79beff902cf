// src/jit/cache.hpp - from a Program to its cubin: memory, wheel, cache directory, compiler.
//
// An entry is a file KEY.cubin: the image, which other tools can read, and after it one line with
// its size, its SHA-256 and the kernel's name, so that damage is noticed.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "nvrtc.hpp"

namespace exactile::jit {

enum class Origin : unsigned char { kMemory, kWheel, kCacheDirectory, kCompiler };
inline constexpr const char* kOriginNames[] = {"memory", "wheel", "cache directory", "compiler"};

struct Paths {
  std::filesystem::path include_dir;                 ///< holds exactile/platform.hpp
  std::filesystem::path cubin_dir;                   ///< of the wheel
  std::vector<std::filesystem::path> library_roots;  ///< where Python packages lie
};

struct Found {
  std::shared_ptr<const Cubin> cubin;
  Origin origin;
};

/// Once, before anything else.
void configure(Paths paths);
const Paths& paths();

/// Headers that device code may include, by name; read once.
const std::vector<Header>& headers();

/// SHA-256 of all headers, the program, its architecture and the flags; no paths, no versions.
std::string cache_key(const Program& program);

/// EXACTILE_CACHE_DIR, else XDG_CACHE_HOME/exactile, else HOME/.cache/exactile, else empty.
std::filesystem::path cache_directory();

/// The compiler; throws std::runtime_error where there is none.
const Nvrtc& nvrtc();

/// Looks memory, wheel and cache directory up, then compiles and publishes. A cubin of the wheel
/// that the driver refused is passed over with `skip_wheel`. Thread-safe.
Found find(const Program& program, bool skip_wheel = false);

/// Writes an entry under a temporary name, then renames it. False where that cannot be done.
bool publish(const std::filesystem::path& folder, const std::string& key, const Cubin& cubin);

}  // namespace exactile::jit
