// src/cuda/build_cubins.cpp - build step: compiles the kernels that the wheel ships.
//
//   build_cubins INCLUDE_DIR OUT_DIR JOBS LIBRARY_ROOT...
//
// Writes KEY.cubin files and report.json: what ptxas says of every kernel. Without NVRTC it says so
// and leaves the report empty: such a wheel compiles at run time. Fails on a kernel that does not
// compile, and where ptxas serialises wgmma.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <regex>
#include <stdexcept>
#include <string>

#include "../jit/cache.hpp"
#include "kernels.hpp"

namespace exactile::cuda {
namespace {

namespace fs = std::filesystem;

/// The number before `words` in a line of ptxas, such as "168 registers"; -1 if there is none.
int number_before(const std::string& log, const std::string& words) {
  std::smatch match;
  return std::regex_search(log, match, std::regex("(\\d+) " + words)) ? std::stoi(match[1]) : -1;
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

/// One worker process's share of the kernels. NVRTC compiles one program at a time in a process.
int build_share(const std::vector<jit::Program>& kernels, int worker, int workers,
                const fs::path& out) {
  try {
    std::ofstream report(out / ("report." + std::to_string(worker)));
    for (std::size_t i = worker; i < kernels.size(); i += workers) {
      report << build(kernels[i], out) << '\n';
    }
    return report.flush() ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "build_cubins: " << error.what() << '\n';
    return 1;
  }
}

/// Joins the workers' reports.
void write_report(const fs::path& out, int workers, const std::string& compiler) {
  std::string lines;
  for (int worker = 0; worker < workers; ++worker) {
    const fs::path share = out / ("report." + std::to_string(worker));
    std::ifstream file(share);
    for (std::string line; std::getline(file, line);) {
      lines += (lines.empty() ? "  " : ",\n  ") + line;
    }
    fs::remove(share);
  }
  std::ofstream(out / "report.json")
      << "{\"compiler\": " << (compiler.empty() ? "null" : "\"" + compiler + "\"")
      << ", \"kernels\": [\n"
      << lines << "\n]}\n";
}

int main(int argc, char** argv) {
  const fs::path out = argv[2];
  const int workers = std::max(1, std::atoi(argv[3]));
  fs::remove_all(out);
  fs::create_directories(out);
  jit::configure(
      {.include_dir = argv[1], .cubin_dir = {}, .library_roots = {argv + 4, argv + argc}});
  std::string compiler;
  try {
    compiler = "NVRTC " + jit::nvrtc().version();
  } catch (const std::runtime_error& error) {
    std::cout << "build_cubins: no CUDA kernels in this build, they are compiled at run time: "
              << error.what() << '\n';
    write_report(out, 0, "");
    return 0;
  }
  const auto kernels = shipped_programs();
  for (int worker = 0; worker < workers; ++worker) {
    if (fork() == 0) std::exit(build_share(kernels, worker, workers, out));
  }
  bool failed = false;
  for (int status = 0; wait(&status) > 0;) failed |= status != 0;
  if (failed) return 1;
  write_report(out, workers, compiler);
  std::cout << "build_cubins: " << kernels.size() << " kernels, " << compiler << '\n';
  return 0;
}

}  // namespace
}  // namespace exactile::cuda

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "build_cubins: expected INCLUDE_DIR OUT_DIR JOBS LIBRARY_ROOT...\n";
    return 2;
  }
  return exactile::cuda::main(argc, argv);
}
