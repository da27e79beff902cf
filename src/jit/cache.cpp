// src/jit/cache.cpp - the key of a kernel, and where its cubin is looked for and kept.
#include "cache.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "sha256.hpp"

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTrailer = "exactile-cubin-1";

Paths g_paths;

std::optional<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

std::string to_entry(const Cubin& cubin) {
  std::ostringstream entry;
  entry << cubin.image << '\n'
        << kTrailer << ' ' << cubin.image.size() << ' ' << sha256(cubin.image) << ' '
        << cubin.lowered_name << '\n';
  return entry.str();
}

/// Nothing for an entry that is cut short or changed.
std::optional<Cubin> from_entry(const std::string& entry) {
  if (entry.size() < 2 || entry.back() != '\n') return std::nullopt;
  const std::size_t newline = entry.rfind('\n', entry.size() - 2);
  if (newline == std::string::npos) return std::nullopt;
  std::istringstream line(entry.substr(newline + 1));
  std::string trailer, digest;
  std::size_t size = 0;
  Cubin cubin;
  line >> trailer >> size >> digest >> cubin.lowered_name;
  if (!line || trailer != kTrailer || size != newline) return std::nullopt;
  cubin.image = entry.substr(0, size);
  if (sha256(cubin.image) != digest) return std::nullopt;
  return cubin;
}

std::optional<Cubin> look_up(const fs::path& folder, const std::string& key) {
  if (folder.empty()) return std::nullopt;
  const auto entry = read_file(folder / (key + ".cubin"));
  return entry ? from_entry(*entry) : std::nullopt;
}

std::vector<Header> read_headers() {
  const fs::path root = g_paths.include_dir;
  std::vector<Header> found;
  std::error_code error;
  for (const char* folder : {"exactile", "exactile/scheduler", "exactile/cuda",
                             "exactile/cuda/sm80", "exactile/cuda/sm90"}) {
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

}  // namespace

void configure(Paths paths) { g_paths = std::move(paths); }
const Paths& paths() { return g_paths; }

const std::vector<Header>& headers() {
  static const std::vector<Header> all = read_headers();
  return all;
}

std::string cache_key(const Program& program) {
  // Sizes keep what follows one another apart.
  const auto part = [](std::string_view text) {
    return std::to_string(text.size()) + ":" + std::string(text);
  };
  static const std::string common = [&] {
    std::string text;
    for (const Header& header : headers()) text += part(header.name) + part(header.text);
    for (const char* flag : kFlags) text += part(flag);
    return sha256(text);
  }();
  return sha256(common + part(program.source) + part(program.name_expression) +
                part(program.architecture));
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

bool publish(const fs::path& folder, const std::string& key, const Cubin& cubin) {
  if (folder.empty()) return false;
  static std::atomic<int> number{0};
  std::error_code error;
  fs::create_directories(folder, error);
  const fs::path temporary =
      folder / (key + "." + std::to_string(getpid()) + "." + std::to_string(number++) + ".tmp");
  {
    std::ofstream file(temporary, std::ios::binary);
    file << to_entry(cubin);
    file.close();
    if (!file) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(temporary, folder / (key + ".cubin"), error);
  std::error_code ignored;
  if (error) fs::remove(temporary, ignored);
  return !error;
}

Found find(const Program& program, bool skip_wheel) {
  static std::mutex mutex;  // also: one compilation at a time
  static std::map<std::pair<std::string, bool>, std::shared_ptr<const Cubin>> memory;
  const std::string key = cache_key(program);
  const std::scoped_lock lock(mutex);
  auto& entry = memory[{key, skip_wheel}];
  if (entry) return {entry, Origin::kMemory};
  const auto keep = [&](Cubin cubin, Origin origin) {
    entry = std::make_shared<const Cubin>(std::move(cubin));
    return Found{entry, origin};
  };
  if (!skip_wheel) {
    if (auto cubin = look_up(g_paths.cubin_dir, key))
      return keep(std::move(*cubin), Origin::kWheel);
  }
  const fs::path folder = cache_directory();
  if (auto cubin = look_up(folder, key)) return keep(std::move(*cubin), Origin::kCacheDirectory);
  Cubin compiled = nvrtc().compile(program, headers()).cubin;
  publish(folder, key, compiled);  // where it cannot be kept, memory has to do
  return keep(std::move(compiled), Origin::kCompiler);
}

}  // namespace exactile::jit
