// src/jit/cache.cpp - the key of a kernel, and where its binary is looked for and kept.
#include "jit/cache.hpp"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <span>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "jit/cache_folder.hpp"
#include "jit/dump.hpp"
#include "jit/sha256.hpp"
#include "jit/warnings.hpp"

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kNoDirectory =
    "compiled kernels are not kept: none of EXACTILE_CACHE_DIR, XDG_CACHE_HOME and HOME names a "
    "folder";

constexpr std::string_view kTrailer = "exactile-kernel-2";

/// By Language.
constexpr const char* kSuffixes[] = {".cubin", ".spv"};

std::string entry_name(const Program& program) {
  return cache_key(program) + kSuffixes[static_cast<int>(program.language)];
}

Paths g_paths;

/// Sizes keep what follows one another apart.
std::string part(std::string_view text) {
  return std::to_string(text.size()) + ":" + std::string(text);
}

std::optional<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string to_entry(const Program& program, const Binary& binary) {
  const std::string digest =
      sha256(part(cache_key(program)) + part(binary.lowered_name) + part(binary.image));
  std::ostringstream entry;
  entry << binary.image << '\n'
        << kTrailer << ' ' << binary.image.size() << ' ' << digest << ' ' << binary.lowered_name
        << '\n';
  return entry.str();
}

/// Nothing for an entry that differs in any byte from what was written for the program.
std::optional<Binary> from_entry(const Program& program, const std::string& entry) {
  if (entry.size() < 2 || entry.back() != '\n') return std::nullopt;
  const std::size_t newline = entry.rfind('\n', entry.size() - 2);
  if (newline == std::string::npos) return std::nullopt;
  std::istringstream line(entry.substr(newline + 1));
  std::string trailer, size, digest;
  Binary binary{.image = entry.substr(0, newline), .lowered_name = {}};
  line >> trailer >> size >> digest >> binary.lowered_name;
  if (!line || to_entry(program, binary) != entry) return std::nullopt;
  return binary;
}

std::string unused(const fs::path& folder, const std::string& why) {
  return "compiled kernels are not kept in " + folder.string() + ": " + why;
}

void warn(const std::string& text) {
  warn_once(Topic::kCacheDirectory,
            "exactile: " + text +
                "; every process compiles them again (EXACTILE_CACHE_DIR names another folder)");
}

std::optional<Binary> read_cached(const Program& program) {
  const fs::path path = cache_directory();
  if (path.empty()) return std::nullopt;
  try {
    const auto folder = CacheFolder::open(path);
    const auto entry = folder ? folder->read(entry_name(program)) : std::nullopt;
    return entry ? from_entry(program, *entry) : std::nullopt;
  } catch (const std::runtime_error& error) {
    warn(unused(path, error.what()));
    return std::nullopt;
  }
}

void write_cached(const Program& program, const Binary& binary) {
  const fs::path path = cache_directory();
  if (path.empty()) return warn(kNoDirectory);
  try {
    CacheFolder::make(path).write(entry_name(program), to_entry(program, binary));
  } catch (const std::runtime_error& error) {
    warn(unused(path, error.what()));
  }
}

std::vector<Header> read_headers(const std::vector<const char*>& folders) {
  const fs::path root = g_paths.include_dir;
  std::vector<Header> found;
  std::error_code error;
  for (const char* folder : folders) {
    for (const auto& entry : fs::directory_iterator(root / folder, error)) {
      if (entry.path().extension() != ".hpp") continue;
      auto text = read_file(entry.path());
      if (text) {
        found.push_back(
            {std::string(folder) + "/" + entry.path().filename().string(), std::move(*text)});
      }
    }
  }
  if (found.empty()) {
    throw std::runtime_error("exactile: expected device headers in " + root.string() +
                             "/exactile, found none: the installation is incomplete");
  }
  std::ranges::sort(found, {}, &Header::name);
  return found;
}

/// Headers and flags of all programs of a language, as one digest.
std::string common_digest(Language language, std::span<const char* const> flags) {
  std::string text;
  for (const Header& header : headers(language)) text += part(header.name) + part(header.text);
  for (const char* flag : flags) text += part(flag);
  return sha256(text);
}

/// Binaries of this process, by key and by whether a wheel was looked in.
struct Memory {
  std::mutex mutex;
  std::map<std::pair<std::string, bool>, std::shared_ptr<const Binary>> binaries;

  static Memory& get() {
    static Memory& memory = *new Memory;  // a daemon thread may come after static destruction
    return memory;
  }
};

}  // namespace

void configure(Paths paths) { g_paths = std::move(paths); }
const Paths& paths() { return g_paths; }

const std::vector<Header>& headers(Language language) {
  // Never destroyed: a daemon thread may come after static destruction.
  if (language == Language::kSycl) {
    static const auto& sycl = *new const std::vector<Header>(
        read_headers({"exactile", "exactile/scheduler", "exactile/sycl", "exactile/sycl/portable",
                      "exactile/sycl/xmx"}));
    return sycl;
  }
  static const auto& cuda = *new const std::vector<Header>(
      read_headers({"exactile", "exactile/scheduler", "exactile/cuda", "exactile/cuda/sm80",
                    "exactile/cuda/sm90"}));
  return cuda;
}

std::string cache_key(const Program& program) {
  static const auto& cuda = *new const std::string(common_digest(Language::kCuda, kCudaFlags));
  static const auto& sycl = *new const std::string(common_digest(Language::kSycl, kSyclFlags));
  std::string flags;
  for (const std::string& flag : program.flags) flags += part(flag);
  return sha256((program.language == Language::kCuda ? cuda : sycl) + part(program.source) +
                part(program.name_expression) + part(program.architecture) + flags);
}

fs::path cache_directory() {
  const auto variable = [](const char* name) -> fs::path {
    const char* const value = std::getenv(name);
    return value ? value : "";
  };
  if (const fs::path own = variable("EXACTILE_CACHE_DIR"); !own.empty()) return own;
  if (const fs::path xdg = variable("XDG_CACHE_HOME"); xdg.is_absolute()) return xdg / "exactile";
  if (const fs::path home = variable("HOME"); home.is_absolute()) {
    return home / ".cache" / "exactile";
  }
  return {};
}

std::string cache_problem() {
  const fs::path path = cache_directory();
  if (path.empty()) return kNoDirectory;
  try {
    const auto folder = CacheFolder::open(path);
    if (folder && !folder->is_writable()) return unused(path, "it is read-only");
    return "";
  } catch (const std::runtime_error& error) {
    return unused(path, error.what());
  }
}

const Nvrtc& nvrtc() {
  static const Nvrtc compiler(g_paths.library_roots);  // tried again after an exception
  return compiler;
}

bool publish(const fs::path& folder, const Program& program, const Binary& binary) {
  std::ofstream file(folder / entry_name(program), std::ios::binary);
  file << to_entry(program, binary);
  file.close();
  return !file.fail();
}

std::optional<Found> look_up(const Program& program, const fs::path& wheel) {
  const std::string key = cache_key(program);
  Memory& memory = Memory::get();
  const std::scoped_lock lock(memory.mutex);
  auto& entry = memory.binaries[{key, wheel.empty()}];
  const auto found = [&](Origin origin) {
    return Found{.binary = entry, .origin = origin, .key = key};
  };
  if (entry) return found(Origin::kMemory);
  const auto take = [&](std::optional<Binary> binary) {
    if (binary) entry = std::make_shared<const Binary>(*std::move(binary));
    return entry != nullptr;
  };
  if (!wheel.empty()) {
    const auto text = read_file(wheel / entry_name(program));
    if (text && take(from_entry(program, *text))) return found(Origin::kWheel);
  }
  if (take(read_cached(program))) return found(Origin::kCacheDirectory);
  return std::nullopt;
}

Found keep(const Program& program, const fs::path& wheel, Binary compiled, const std::string& ptx) {
  const std::string key = cache_key(program);
  dump(program, key, compiled, ptx);
  write_cached(program, compiled);  // failure to write is no error: the copy in memory is used
  Memory& memory = Memory::get();
  const std::scoped_lock lock(memory.mutex);
  auto& entry = memory.binaries[{key, wheel.empty()}];
  entry = std::make_shared<const Binary>(std::move(compiled));
  return {.binary = entry, .origin = Origin::kCompiler, .key = key};
}

Found find(const Program& asked, Search search) {
  const Program program = with_line_info(asked);
  const fs::path wheel = search == Search::kAnywhere ? g_paths.cubin_dir : fs::path();
  const auto known = [&] {
    return search == Search::kCompiler ? std::nullopt : look_up(program, wheel);
  };
  if (auto found = known()) return *found;
  static std::mutex mutex;  // one compilation at a time
  const std::scoped_lock lock(mutex);
  if (auto found = known()) return *found;  // from who was here before
  Compiled compiled = nvrtc().compile(program, headers());
  return keep(program, wheel, std::move(compiled.cubin), compiled.ptx);
}

}  // namespace exactile::jit
