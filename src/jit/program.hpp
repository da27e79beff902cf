// src/jit/program.hpp - what is compiled at run time, and what comes of it: for the cache, the
// compilers, the backends and the builders.
#pragma once

#include <iterator>
#include <string>
#include <vector>

namespace exactile::jit {

/// Whose headers, flags and compiler a program takes.
enum class Language : unsigned char { kCuda, kSycl };

/// Part of every compilation by NVRTC, and by the SYCL runtime's compiler; and of the cache key.
inline constexpr const char* kCudaFlags[] = {"-std=c++20", "--ptxas-options=-v"};
inline constexpr const char* kSyclFlags[] = {"-std=c++20", "-O3"};

struct Header {
  std::string name;  ///< as in #include <name>
  std::string text;
};

/// One kernel to compile. `source` includes headers by name.
struct Program {
  std::string source;
  std::string name_expression;          ///< `ns::kernel<Arguments...>`
  std::string architecture = {};        ///< "sm_90a"; empty for SPIR-V
  std::vector<std::string> flags = {};  ///< besides those of all programs of the language
  Language language = Language::kCuda;
};

/// Of its compilation, but for the architecture.
inline std::vector<std::string> all_flags(const Program& program) {
  std::vector<std::string> all;
  if (program.language == Language::kCuda) {
    all.assign(std::begin(kCudaFlags), std::end(kCudaFlags));
  } else {
    all.assign(std::begin(kSyclFlags), std::end(kSyclFlags));
  }
  all.insert(all.end(), program.flags.begin(), program.flags.end());
  return all;
}

/// A compiled kernel: a cubin or SPIR-V.
struct Binary {
  std::string image;
  std::string lowered_name;  ///< of the kernel in the image
};

/// What NVRTC makes of a program.
struct Compiled {
  Binary cubin;
  std::string ptx;
  std::string log;  ///< of the compiler and of ptxas: registers, spills, warnings
};

}  // namespace exactile::jit
