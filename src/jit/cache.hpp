// src/jit/cache.hpp - from a Program to its binary: memory, wheel, cache directory, compiler.
//
// An entry is a file KEY.cubin, or KEY.spv: the image, which other tools can read, and after it one
// line with its size, its SHA-256 and the kernel's name, so that damage is noticed.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
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
  std::shared_ptr<const Binary> binary;
  Origin origin;
};

/// Once, before anything else.
void configure(Paths paths);
const Paths& paths();

/// Part of every compilation by the SYCL runtime's compiler, and of the cache key.
inline constexpr const char* kSyclFlags[] = {"-std=c++20", "-O3"};

/// Headers that device code may include, by name; read once.
const std::vector<Header>& headers(Language language = Language::kCuda);

/// SHA-256 of all headers, the program, its architecture and the flags; no paths, no versions.
std::string cache_key(const Program& program);

/// EXACTILE_CACHE_DIR, else XDG_CACHE_HOME/exactile, else HOME/.cache/exactile, else empty.
std::filesystem::path cache_directory();

/// The compiler of CUDA; throws std::runtime_error where there is none.
const Nvrtc& nvrtc();

/// Looks memory, `wheel` (a folder of entries, or empty) and cache directory up. Thread-safe.
std::optional<Found> look_up(const Program& program, const std::filesystem::path& wheel);

/// Publishes in the cache directory what look_up() with the same arguments did not find.
Found keep(const Program& program, const std::filesystem::path& wheel, Binary compiled);

/// For CUDA: looks up, else compiles and keeps. A cubin of the wheel that the driver refused is
/// passed over with `skip_wheel`. Thread-safe.
Found find(const Program& program, bool skip_wheel = false);

/// Writes an entry under a temporary name, then renames it. False where that cannot be done.
bool publish(const std::filesystem::path& folder, const Program& program, const Binary& binary);

}  // namespace exactile::jit
