// src/jit/nvrtc.hpp - NVIDIA's run-time compiler, found and loaded when first needed.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "jit/program.hpp"

namespace exactile::jit {

class Nvrtc {
 public:
  /// Looks for a library of version 12.0 or newer: in this process, then in the folders that the
  /// PyPI packages make under one of `roots` (sys.path), in CUDA_HOME, and where the loader looks.
  /// Throws std::runtime_error that says what was tried and what to install.
  explicit Nvrtc(const std::vector<std::filesystem::path>& roots);

  /// Throws std::runtime_error with the compiler's log.
  Compiled compile(const Program& program, const std::vector<Header>& headers) const;

  const std::string& path() const { return path_; }
  /// "13.0".
  std::string version() const;

 private:
  bool open(const std::string& library, int flags, std::string& tried);
  void check(int code, const char* call) const;

  std::string path_;
  int major_ = 0, minor_ = 0;

  struct Handle;
  using Strings = const char* const*;
  const char* (*error_string_)(int);
  int (*version_)(int*, int*);
  int (*create_)(Handle**, const char* source, const char* name, int headers, Strings texts,
                 Strings names);
  int (*destroy_)(Handle**);
  int (*add_name_)(Handle*, const char*);
  int (*lowered_name_)(Handle*, const char*, const char**);
  int (*compile_)(Handle*, int, Strings);
  int (*log_size_)(Handle*, std::size_t*);
  int (*log_)(Handle*, char*);
  int (*ptx_size_)(Handle*, std::size_t*);
  int (*ptx_)(Handle*, char*);
  int (*cubin_size_)(Handle*, std::size_t*);
  int (*cubin_)(Handle*, char*);
};

}  // namespace exactile::jit
