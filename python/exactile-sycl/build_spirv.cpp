// python/exactile-sycl/build_spirv.cpp - build step: compiles the kernels that the wheel ships.
//
//   build_spirv INCLUDE_DIR OUT_DIR JOBS
//
// Writes KEY.spv files. Fails without a device, which the runtime's compiler wants, and on a kernel
// that does not compile.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <stdexcept>

#include "jit/cache.hpp"
#include "runtime.hpp"
#include "sycl/kernels.hpp"

namespace exactile::sycl {
namespace {

namespace fs = std::filesystem;

/// One worker process's share of the kernels; the runtime is loaded by workers only, after the
/// fork.
int build_share(int worker, int workers, const fs::path& include, const fs::path& out) {
  try {
    const auto devices = ::sycl::device::get_devices();
    const auto device = std::ranges::find_if(devices, [](::sycl::device device) {
      return device.ext_oneapi_can_build(::sycl::ext::oneapi::experimental::source_language::sycl);
    });
    if (device == devices.end()) {
      throw std::runtime_error(
          "expected a SYCL device, found none: without EXACTILE_SPIRV=1 kernels are compiled when "
          "they are first used");
    }
    const ::sycl::queue queue(*device);
    std::vector<std::string> flags(std::begin(jit::kSyclFlags), std::end(jit::kSyclFlags));
    flags.insert(flags.end(), {"-I", include.string()});
    const auto programs = shipped_programs();
    for (std::size_t i = worker; i < programs.size(); i += workers) {
      const jit::Program& program = programs[i];
      Spirv spirv = compile(queue, program.source, {}, program.name_expression, flags);
      const jit::Binary binary{.image = std::move(spirv.image),
                               .lowered_name = std::move(spirv.name)};
      if (!jit::publish(out, program, binary)) {
        throw std::runtime_error("cannot write to " + out.string());
      }
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "build_spirv: " << error.what() << '\n';
    return 1;
  }
}

int main(const fs::path& include, const fs::path& out, int workers) {
  fs::remove_all(out);
  fs::create_directories(out);
  jit::configure({.include_dir = include, .cubin_dir = {}, .library_roots = {}});
  for (int worker = 0; worker < workers; ++worker) {
    if (fork() == 0) {
      const int code = build_share(worker, workers, include, out);
      std::cout.flush();
      _exit(code);
    }
  }
  bool failed = false;
  for (int status = 0; wait(&status) > 0;) failed |= status != 0;
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace exactile::sycl

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "build_spirv: expected INCLUDE_DIR OUT_DIR JOBS\n";
    return 2;
  }
  return exactile::sycl::main(argv[1], argv[2], std::max(1, std::atoi(argv[3])));
}
