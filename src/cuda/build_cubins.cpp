// src/cuda/build_cubins.cpp - build step: compiles the kernels that the wheel ships.
//
//   build_cubins INCLUDE_DIR OUT_DIR JOBS LIBRARY_ROOT...
//
// Writes KEY.cubin files and report.json: what ptxas says of every kernel. Fails without NVRTC, on
// a kernel that does not compile, and where ptxas serialises wgmma.
#include <algorithm>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include "cuda/kernels.hpp"
#include "jit/cache.hpp"
#include "jit/processes.hpp"

namespace exactile::cuda {
namespace {

namespace fs = std::filesystem;

/// The number before `words` in a line of ptxas, such as "168 registers"; -1 if there is none.
int number_before(const std::string& log, const std::string& words) {
  const std::string behind = " " + words;
  for (std::size_t end = log.find(behind); end != log.npos; end = log.find(behind, end + 1)) {
    std::size_t begin = end;
    while (begin > 0 && log[begin - 1] >= '0' && log[begin - 1] <= '9') --begin;
    if (begin < end) return std::stoi(log.substr(begin, end - begin));
  }
  return -1;
}

/// Compiles one kernel; returns its line of the report.
std::string build(const jit::Program& program, const fs::path& out) {
  const jit::Compiled compiled = jit::nvrtc().compile(program, jit::headers());
  if (compiled.log.find("serializ") != std::string::npos) {
    throw std::runtime_error("ptxas serialises wgmma in " + program.name_expression + "\n" +
                             compiled.log);
  }
  const std::string key = jit::cache_key(program);
  if (!jit::publish(out, program, compiled.cubin)) {
    throw std::runtime_error("cannot write to " + out.string());
  }
  const auto number = [&](const char* words) {
    return std::to_string(number_before(compiled.log, words));
  };
  return "{\"kernel\": \"" + program.name_expression + "\", \"architecture\": \"" +
         program.architecture + "\", \"key\": \"" + key +
         "\", \"bytes\": " + std::to_string(compiled.cubin.image.size()) +
         ", \"registers\": " + number("registers") +
         ", \"stack_bytes\": " + number("bytes stack frame") +
         ", \"spill_store_bytes\": " + number("bytes spill stores") +
         ", \"spill_load_bytes\": " + number("bytes spill loads") + "}";
}

/// Where a kernel's process leaves its line of the report.
fs::path line_file(const fs::path& out, std::size_t kernel) {
  return out / ("report." + std::to_string(kernel));
}

/// Compiles all kernels, `jobs` at a time; says every tenth of them how far it is.
bool build_all(const std::vector<jit::Program>& kernels, std::size_t jobs, const fs::path& out) {
  const auto compile = [&](std::size_t kernel) {
    std::ofstream line(line_file(out, kernel));
    line << build(kernels[kernel], out);
    if (!line.flush()) throw std::runtime_error("cannot write to " + out.string());
  };
  const auto progress = [&](std::size_t ended) {
    if (ended * 10 / kernels.size() != (ended - 1) * 10 / kernels.size()) {
      std::cout << "build_cubins: " << ended << " of " << kernels.size() << " CUDA kernels\n"
                << std::flush;
    }
  };
  return jit::run_in_processes("build_cubins", kernels.size(), jobs, compile, progress);
}

/// Joins the lines, in the order of the kernels: the same whatever ran at the same time.
void write_report(const fs::path& out, std::size_t kernels, const std::string& compiler) {
  std::ofstream report(out / "report.json");
  report << "{\"compiler\": \"" << compiler << "\", \"kernels\": [\n";
  for (std::size_t kernel = 0; kernel < kernels; ++kernel) {
    report << (kernel == 0 ? "  " : ",\n  ") << std::ifstream(line_file(out, kernel)).rdbuf();
    fs::remove(line_file(out, kernel));
  }
  report << "\n]}\n";
  if (!report.flush()) throw std::runtime_error("cannot write to " + out.string());
}

int main(int argc, char** argv) {
  const fs::path out = argv[2];
  const std::size_t jobs = std::max(1, std::atoi(argv[3]));
  fs::remove_all(out);
  fs::create_directories(out);
  jit::configure(
      {.include_dir = argv[1], .cubin_dir = {}, .library_roots = {argv + 4, argv + argc}});
  std::string compiler;
  try {
    compiler = "NVRTC " + jit::nvrtc().version();
  } catch (const std::runtime_error& error) {
    std::cerr << "build_cubins: expected NVRTC, found none: pip install nvidia-cuda-nvrtc, or set "
                 "EXACTILE_CUBINS=0 for a wheel without CUDA kernels, which are then compiled when "
                 "they are first used\n"
              << error.what() << '\n';
    return 1;
  }
  const auto kernels = shipped_programs();
  if (!build_all(kernels, jobs, out)) return 1;
  write_report(out, kernels.size(), compiler);
  std::cout << "build_cubins: " << compiler << '\n';
  return 0;
}

}  // namespace
}  // namespace exactile::cuda

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "build_cubins: expected INCLUDE_DIR OUT_DIR JOBS LIBRARY_ROOT...\n";
    return 2;
  }
  try {
    return exactile::cuda::main(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "build_cubins: " << error.what() << '\n';
    return 1;
  }
}
