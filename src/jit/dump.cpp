// src/jit/dump.cpp - files named by kernel, architecture and the beginning of the key.
#include "jit/dump.hpp"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <vector>

#include "jit/cache.hpp"
#include "jit/warnings.hpp"

extern char** environ;

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLineInfo = "-lineinfo";

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

/// "exactile::cuda::sm90::prefill_kernel<...>" -> "cuda_sm90_prefill_kernel_...".
std::string readable_name(const Program& program, const std::string& key) {
  constexpr std::size_t kLongest = 160, kKeyDigits = 8;
  std::string text = program.name_expression, name;
  constexpr std::string_view kOurs = "exactile::";
  for (std::size_t at; (at = text.find(kOurs)) != text.npos;) text.erase(at, kOurs.size());
  for (const char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c))) {
      name += c;
    } else if (!name.empty() && name.back() != '_') {
      name += '_';
    }
  }
  name.resize(std::min(name.size(), kLongest));
  while (!name.empty() && name.back() == '_') name.pop_back();
  if (!program.architecture.empty()) name += "." + program.architecture;
  return name + "." + key.substr(0, kKeyDigits);
}

/// The source as it was compiled, and below it the rest of what made the kernel.
std::string annotated(const Program& program) {
  std::string text = program.source + "\n// instance: " + program.name_expression + "\n";
  if (!program.architecture.empty()) text += "// architecture: " + program.architecture + "\n";
  text += "// flags:";
  for (const std::string& flag : all_flags(program)) text += " " + flag;
  return text + "\n";
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file.fail()) {
    throw std::invalid_argument(
        "EXACTILE_JIT_DUMP: expected a folder that can be written to, got '" +
        path.parent_path().string() + "'");
  }
}

/// In PATH, in a Python package, or in a toolkit; else empty.
fs::path find_disassembler() {
  std::vector<fs::path> folders;
  const std::string path = variable("PATH");
  for (std::size_t begin = 0; begin < path.size();) {
    const std::size_t end = std::min(path.find(':', begin), path.size());
    if (end > begin) folders.push_back(path.substr(begin, end - begin));
    begin = end + 1;
  }
  for (const fs::path& root : paths().library_roots) folders.push_back(root / "nvidia/cu13/bin");
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
    if (const std::string home = variable(name); !home.empty()) {
      folders.push_back(fs::path(home) / "bin");
    }
  }
  folders.emplace_back("/usr/local/cuda/bin");
  for (const fs::path& folder : folders) {
    const fs::path tool = folder / "nvdisasm";
    if (folder.is_absolute() && access(tool.c_str(), X_OK) == 0) return tool;
  }
  return {};
}

/// Writes what the tool says to `out`. Whether it succeeded.
bool disassemble(const fs::path& tool, const fs::path& cubin, const fs::path& out, bool lines) {
  std::vector<std::string> words{tool.string(), "-c"};
  if (lines) words.push_back("-g");
  words.push_back(cubin.string());
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int code = posix_spawn(&child, tool.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (code != 0) return false;
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return false;
  }
  return status == 0;
}

void write_sass(const fs::path& cubin, bool lines) {
  const fs::path tool = find_disassembler();
  if (tool.empty()) {
    return warn_once(Topic::kDisassembler,
                     "EXACTILE_JIT_DUMP: no SASS beside " + cubin.string() +
                         ": nvdisasm was not found in PATH or CUDA_HOME (the package "
                         "nvidia-cuda-nvdisasm has it)");
  }
  const fs::path sass = fs::path(cubin).replace_extension(".sass");
  if (!disassemble(tool, cubin, sass, lines)) {
    warn_once(Topic::kDisassembler, "EXACTILE_JIT_DUMP: " + tool.string() + " failed for " +
                                        cubin.string() + "; what it said is in " + sass.string());
  }
}

}  // namespace

Program with_line_info(Program program) {
  const std::string wanted = variable("EXACTILE_JIT_LINEINFO");
  if (wanted == "1") {
    program.flags.emplace_back(kLineInfo);
  } else if (!wanted.empty() && wanted != "0") {
    throw std::invalid_argument("EXACTILE_JIT_LINEINFO: expected 0 or 1, got '" + wanted + "'");
  }
  return program;
}

void dump(const Program& program, const std::string& key, const Binary& binary,
          const std::string& ptx) {
  const fs::path folder = variable("EXACTILE_JIT_DUMP");
  if (folder.empty()) return;
  std::error_code ignored;  // write() says that it is not there
  fs::create_directories(folder, ignored);
  const std::string name = readable_name(program, key);
  const auto file = [&](const char* suffix) { return folder / (name + suffix); };
  if (program.language == Language::kSycl) {
    write(file(".cpp"), annotated(program));
    return write(file(".spv"), binary.image);
  }
  write(file(".cu"), annotated(program));
  write(file(".ptx"), ptx);
  write(file(".cubin"), binary.image);
  write_sass(file(".cubin"), std::ranges::find(program.flags, kLineInfo) != program.flags.end());
}

}  // namespace exactile::jit
