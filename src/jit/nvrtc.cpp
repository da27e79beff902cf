// src/jit/nvrtc.cpp - finds libnvrtc, declares what is used of it, compiles one kernel to a cubin.
#include "jit/nvrtc.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

namespace exactile::jit {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSonames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

/// Files of `folder` named `prefix`*, the newest version last.
std::vector<std::string> files(const fs::path& folder, const std::string& prefix) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.find(".alt.") == std::string::npos) {
      found.push_back(entry.path().string());
    }
  }
  std::ranges::sort(found);
  return found;
}

std::vector<fs::path> folders(const std::vector<fs::path>& roots) {
  std::vector<fs::path> found;
  for (const fs::path& root : roots) {
    found.push_back(root / "nvidia/cu13/lib");
    found.push_back(root / "nvidia/cuda_nvrtc/lib");
  }
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"}) {
    const char* const home = std::getenv(name);
    if (home && *home) found.push_back(fs::path(home) / "lib64");
  }
  found.emplace_back("/usr/local/cuda/lib64");
  return found;
}

}  // namespace

Nvrtc::Nvrtc(const std::vector<fs::path>& roots) {
  std::string tried;
  for (const char* soname : kSonames) {
    if (open(soname, RTLD_NOLOAD, tried)) return;
  }
  for (const fs::path& folder : folders(roots)) {
    const auto libraries = files(folder, "libnvrtc.so.");
    if (libraries.empty()) continue;
    // Versions 12.9 and 13.0 only find their builtins when those are loaded already.
    for (const auto& builtins : files(folder, "libnvrtc-builtins.so.")) {
      dlopen(builtins.c_str(), RTLD_NOW | RTLD_GLOBAL);
    }
    if (open(libraries.back(), 0, tried)) return;
  }
  for (const char* soname : kSonames) {
    if (open(soname, 0, tried)) return;
  }
  throw std::runtime_error(
      "exactile: CUDA kernels that are not in the wheel or the cache need NVRTC 12.0 or newer, "
      "which was not found: pip install 'exactile[jit]' (the package nvidia-cuda-nvrtc), or set "
      "CUDA_HOME; tried " +
      tried);
}

bool Nvrtc::open(const std::string& library, int flags, std::string& tried) {
  void* const handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
  const auto give_up = [&](const char* why) {
    if (handle) dlclose(handle);
    tried += (tried.empty() ? "" : ", ") + library + " (" + why + ")";
    return false;
  };
  if (!handle) return flags & RTLD_NOLOAD ? false : give_up(dlerror());
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    complete &= function != nullptr;
  };
  find(error_string_, "nvrtcGetErrorString");
  find(version_, "nvrtcVersion");
  find(create_, "nvrtcCreateProgram");
  find(destroy_, "nvrtcDestroyProgram");
  find(add_name_, "nvrtcAddNameExpression");
  find(lowered_name_, "nvrtcGetLoweredName");
  find(compile_, "nvrtcCompileProgram");
  find(log_size_, "nvrtcGetProgramLogSize");
  find(log_, "nvrtcGetProgramLog");
  find(ptx_size_, "nvrtcGetPTXSize");
  find(ptx_, "nvrtcGetPTX");
  find(cubin_size_, "nvrtcGetCUBINSize");
  find(cubin_, "nvrtcGetCUBIN");
  if (!complete || version_(&major_, &minor_) != 0) return give_up("incomplete");
  if (major_ < 12) return give_up("older than 12.0");
  Dl_info info;
  path_ = dladdr(reinterpret_cast<void*>(version_), &info) ? info.dli_fname : library;
  return true;
}

std::string Nvrtc::version() const { return std::to_string(major_) + "." + std::to_string(minor_); }

void Nvrtc::check(int code, const char* call) const {
  if (code == 0) return;
  throw std::runtime_error(std::string(call) + ": " + error_string_(code) + " (" +
                           std::to_string(code) + ")");
}

Compiled Nvrtc::compile(const Program& program, const std::vector<Header>& headers) const {
  std::vector<const char*> names, texts;
  for (const Header& header : headers) {
    names.push_back(header.name.c_str());
    texts.push_back(header.text.c_str());
  }
  std::vector<std::string> words = all_flags(program);
  words.push_back("-arch=" + program.architecture);
  std::vector<const char*> flags;
  for (const std::string& word : words) flags.push_back(word.c_str());

  struct Owner {
    const Nvrtc& nvrtc;
    Handle* handle = nullptr;
    ~Owner() { nvrtc.destroy_(&handle); }
  } owner{.nvrtc = *this};
  check(create_(&owner.handle, program.source.c_str(), "exactile.cu",
                static_cast<int>(headers.size()), texts.data(), names.data()),
        "nvrtcCreateProgram");
  check(add_name_(owner.handle, program.name_expression.c_str()), "nvrtcAddNameExpression");
  const int code = compile_(owner.handle, static_cast<int>(flags.size()), flags.data());
  /// One of the compiler's outputs.
  const auto output = [&](auto size_of, auto get, const char* call) {
    std::size_t size = 0;
    check(size_of(owner.handle, &size), call);
    std::string text(size, '\0');
    check(get(owner.handle, text.data()), call);
    return text;
  };
  const auto to_text = [](std::string text) {
    while (!text.empty() && text.back() == '\0') text.pop_back();
    return text;
  };
  Compiled result;
  result.log = to_text(output(log_size_, log_, "nvrtcGetProgramLog"));
  if (code != 0) {
    throw std::runtime_error("nvrtcCompileProgram: " + std::string(error_string_(code)) + " (" +
                             std::to_string(code) + ") for " + program.name_expression + " on " +
                             program.architecture + ", NVRTC " + version() + "\n" + result.log);
  }
  const char* lowered = nullptr;  // lives as long as the program
  check(lowered_name_(owner.handle, program.name_expression.c_str(), &lowered),
        "nvrtcGetLoweredName");
  result.cubin.lowered_name = lowered;
  result.cubin.image = output(cubin_size_, cubin_, "nvrtcGetCUBIN");
  result.ptx = to_text(output(ptx_size_, ptx_, "nvrtcGetPTX"));
  return result;
}

}  // namespace exactile::jit
