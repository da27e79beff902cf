// src/jit/cache.cpp - the key of a kernel, and where its binary is looked for and kept.
#include "cache.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <span>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "sha256.hpp"

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTrailer = "exactile-cubin-1";

/// By Language.
constexpr const char* kSuffixes[] = {".cubin", ".spv"};

fs::path entry_path(const fs::path& folder, const Program& program) {
  return folder / (cache_key(program) + kSuffixes[static_cast<int>(program.language)]);
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

std::string to_entry(const Binary& binary) {
  std::ostringstream entry;
  entry << binary.image << '\n'
        << kTrailer << ' ' << binary.image.size() << ' ' << sha256(binary.image) << ' '
        << binary.lowered_name << '\n';
  return entry.str();
}

/// Nothing for an entry that is cut short or changed.
std::optional<Binary> from_entry(const std::string& entry) {
  if (entry.size() < 2 || entry.back() != '\n') return std::nullopt;
  const std::size_t newline = entry.rfind('\n', entry.size() - 2);
  if (newline == std::string::npos) return std::nullopt;
  std::istringstream line(entry.substr(newline + 1));
  std::string trailer, digest;
  std::size_t size = 0;
  Binary binary;
  line >> trailer >> size >> digest >> binary.lowered_name;
  if (!line || trailer != kTrailer || size != newline) return std::nullopt;
  binary.image = entry.substr(0, size);
  if (sha256(binary.image) != digest) return std::nullopt;
  return binary;
}

std::optional<Binary> read_entry(const fs::path& folder, const Program& program) {
  if (folder.empty()) return std::nullopt;
  const auto entry = read_file(entry_path(folder, program));
  return entry ? from_entry(*entry) : std::nullopt;
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
    static Memory memory;
    return memory;
  }
};

}  // namespace

void configure(Paths paths) { g_paths = std::move(paths); }
const Paths& paths() { return g_paths; }

const std::vector<Header>& headers(Language language) {
  if (language == Language::kSycl) {
    static const std::vector<Header> sycl =
        read_headers({"exactile", "exactile/scheduler", "exactile/sycl", "exactile/sycl/portable",
                      "exactile/sycl/xmx"});
    return sycl;
  }
  static const std::vector<Header> cuda =
      read_headers({"exactile", "exactile/scheduler", "exactile/cuda", "exactile/cuda/sm80",
                    "exactile/cuda/sm90"});
  return cuda;
}

std::string cache_key(const Program& program) {
  static const std::string cuda = common_digest(Language::kCuda, kFlags);
  static const std::string sycl = common_digest(Language::kSycl, kSyclFlags);
  return sha256((program.language == Language::kCuda ? cuda : sycl) + part(program.source) +
                part(program.name_expression) + part(program.architecture));
}

fs::path cache_directory() {
  const auto variable = [](const char* name) -> fs::path {
    const char* const value = std::getenv(name);
    return value ? value : "";
  };
  if (const fs::path own = variable("EXACTILE_CACHE_DIR"); !own.empty()) return own;
  if (const fs::path xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return xdg / "exactile";
  if (const fs::path home = variable("HOME"); !home.empty()) return home / ".cache" / "exactile";
  return {};
}

const Nvrtc& nvrtc() {
  static const Nvrtc compiler(g_paths.library_roots);  // tried again after an exception
  return compiler;
}

bool publish(const fs::path& folder, const Program& program, const Binary& binary) {
  if (folder.empty()) return false;
  static std::atomic<int> number{0};
  std::error_code error;
  fs::create_directories(folder, error);
  const fs::path path = entry_path(folder, program);
  const fs::path temporary =
      path.string() + "." + std::to_string(getpid()) + "." + std::to_string(number++) + ".tmp";
  {
    std::ofstream file(temporary, std::ios::binary);
    file << to_entry(binary);
    file.close();
    if (!file) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(temporary, path, error);
  std::error_code ignored;
  if (error) fs::remove(temporary, ignored);
  return !error;
}

std::optional<Found> look_up(const Program& program, const fs::path& wheel) {
  Memory& memory = Memory::get();
  const std::scoped_lock lock(memory.mutex);
  auto& entry = memory.binaries[{cache_key(program), wheel.empty()}];
  if (entry) return Found{entry, Origin::kMemory};
  const auto found_in = [&](const fs::path& folder, Origin origin) -> std::optional<Found> {
    auto binary = read_entry(folder, program);
    if (!binary) return std::nullopt;
    entry = std::make_shared<const Binary>(std::move(*binary));
    return Found{entry, origin};
  };
  if (auto found = found_in(wheel, Origin::kWheel)) return found;
  return found_in(cache_directory(), Origin::kCacheDirectory);
}

Found keep(const Program& program, const fs::path& wheel, Binary compiled) {
  publish(cache_directory(), program, compiled);  // where it cannot be kept, memory has to do
  Memory& memory = Memory::get();
  const std::scoped_lock lock(memory.mutex);
  auto& entry = memory.binaries[{cache_key(program), wheel.empty()}];
  entry = std::make_shared<const Binary>(std::move(compiled));
  return {entry, Origin::kCompiler};
}

Found find(const Program& program, bool skip_wheel) {
  static std::mutex mutex;  // one compilation at a time
  const std::scoped_lock lock(mutex);
  const fs::path wheel = skip_wheel ? fs::path() : g_paths.cubin_dir;
  if (auto found = look_up(program, wheel)) return *found;
  return keep(program, wheel, nvrtc().compile(program, headers()).cubin);
}

}  // namespace exactile::jit
