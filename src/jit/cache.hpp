// src/jit/cache.hpp - from a Program to its binary: memory, wheel, cache directory, compiler.
//
// An entry is a file KEY.cubin, or KEY.spv: the image, which other tools can read, and after it one
// line with its size, the kernel's name, and a SHA-256 over the key, the name and the image, so
// that damage is noticed. The wheel's entries are trusted as the wheel is; those of the cache
// directory where no other user can write to it (cache_folder.hpp).
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "jit/nvrtc.hpp"
#include "jit/program.hpp"

namespace exactile::jit {

enum class Origin : unsigned char { kMemory, kWheel, kCacheDirectory, kCompiler };
inline constexpr const char* kOriginNames[] = {"memory", "wheel", "cache directory", "compiler"};

/// Where a binary may come from. Each passes over what the driver refused of the one before it.
enum class Search : unsigned char { kAnywhere, kNotWheel, kCompiler };

struct Paths {
  std::filesystem::path include_dir;                 ///< holds exactile/platform.hpp
  std::filesystem::path cubin_dir;                   ///< of the wheel
  std::vector<std::filesystem::path> library_roots;  ///< where Python packages lie
};

struct Found {
  std::shared_ptr<const Binary> binary;
  Origin origin;
  std::string key = {};  ///< cache_key()
};

/// Once, before anything else.
void configure(Paths paths);
const Paths& paths();

/// Headers that device code may include, by name; read once.
const std::vector<Header>& headers(Language language = Language::kCuda);

/// SHA-256 of all headers, the program, its architecture and the flags; no paths, no versions.
std::string cache_key(const Program& program);

/// EXACTILE_CACHE_DIR, else XDG_CACHE_HOME/exactile, else HOME/.cache/exactile, else empty.
/// Relative values of the latter two are ignored, as the XDG Base Directory Specification says.
std::filesystem::path cache_directory();

/// Why kernels are not kept there, or not found; empty where they are. Makes nothing to find out.
std::string cache_problem();

/// The compiler of CUDA; throws std::runtime_error where there is none.
const Nvrtc& nvrtc();

/// Looks memory, `wheel` (a folder of entries, or empty) and cache directory up. Thread-safe.
std::optional<Found> look_up(const Program& program, const std::filesystem::path& wheel);

/// Publishes in the cache directory what look_up() with the same arguments did not find, and dumps
/// it where that is asked for.
Found keep(const Program& program, const std::filesystem::path& wheel, Binary compiled,
           const std::string& ptx = {});

/// For CUDA: looks up, else compiles and keeps; with line information where that is asked for.
/// Thread-safe.
Found find(const Program& program, Search search = Search::kAnywhere);

/// Writes an entry of the wheel. False where that cannot be done.
bool publish(const std::filesystem::path& folder, const Program& program, const Binary& binary);

}  // namespace exactile::jit
