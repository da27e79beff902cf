// python/exactile-sycl/build_spirv.cpp - build step: compiles the kernels that the wheel ships.
//
//   build_spirv INCLUDE_DIR OUT_DIR JOBS
//
// Writes KEY.spv files. Fails without a device, which the runtime's compiler wants, and on a kernel
// that does not compile.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <stdexcept>

#include "jit/cache.hpp"
#include "jit/processes.hpp"
#include "runtime.hpp"
#include "sycl/kernels.hpp"

namespace exactile::sycl {
namespace {

namespace fs = std::filesystem;

/// One worker process's share of the kernels; the runtime is loaded by workers only, after the
/// fork.
void build_share(std::size_t worker, std::size_t workers, const fs::path& include,
                 const fs::path& out) {
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
  const auto programs = shipped_programs();
  for (std::size_t i = worker; i < programs.size(); i += workers) {
    const jit::Program& program = programs[i];
    std::vector<std::string> flags = jit::all_flags(program);
    flags.insert(flags.end(), {"-I", include.string()});
    Spirv spirv = compile(queue, program.source, {}, program.name_expression, flags);
    const jit::Binary binary{.image = std::move(spirv.image),
                             .lowered_name = std::move(spirv.name)};
    if (!jit::publish(out, program, binary)) {
      throw std::runtime_error("cannot write to " + out.string());
    }
  }
}

int main(const fs::path& include, const fs::path& out, std::size_t workers) {
  fs::remove_all(out);
  fs::create_directories(out);
  jit::configure({.include_dir = include, .cubin_dir = {}, .library_roots = {}});
  const auto build = [&](std::size_t worker) { build_share(worker, workers, include, out); };
  return jit::run_in_processes("build_spirv", workers, workers, build, [](std::size_t) {}) ? 0 : 1;
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
