// python/exactile-sycl/runtime.cpp - compile and load kernels; forks.
#include "runtime.hpp"

#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <stdexcept>

namespace exactile::sycl {
namespace {

namespace experimental = ::sycl::ext::oneapi::experimental;

}  // namespace

Spirv compile(const ::sycl::queue& queue, const std::string& source,
              const std::vector<std::pair<std::string, std::string>>& headers,
              const std::string& name_expression, const std::vector<std::string>& flags) {
  experimental::include_files files;
  for (const auto& [name, text] : headers) files.add(name, text);
  std::string log;
  try {
    auto bundle = experimental::create_kernel_bundle_from_source(
        queue.get_context(), experimental::source_language::sycl, source,
        experimental::properties{files});
    auto built = experimental::build(
        bundle, {queue.get_device()},
        experimental::properties{experimental::save_log{&log},
                                 experimental::registered_names{name_expression},
                                 experimental::build_options{flags}});
    Spirv spirv{.image = {}, .name = built.ext_oneapi_get_raw_kernel_name(name_expression)};
    for (const auto& image : built) {
      if (!spirv.image.empty()) throw std::runtime_error("expected one SPIR-V image, got more");
      const auto content = image.ext_oneapi_get_backend_content();
      spirv.image.assign(reinterpret_cast<const char*>(content.data()), content.size());
    }
    if (spirv.image.empty()) throw std::runtime_error("expected a SPIR-V image, got none");
    return spirv;
  } catch (const ::sycl::exception& error) {
    throw std::runtime_error(std::string(error.what()) + "\n" + log);
  }
}

const ::sycl::kernel* load(const ::sycl::queue& queue, const Spirv& spirv, int registers) {
  const auto bytes = std::as_bytes(std::span(spirv.image));
  auto bundle = experimental::create_kernel_bundle_from_source(
      queue.get_context(), experimental::source_language::spirv,
      std::vector<std::byte>(bytes.begin(), bytes.end()));
  std::vector<std::string> options;
  if (registers == 256) options.emplace_back("-ze-opt-large-register-file");
  return new ::sycl::kernel(
      experimental::build(bundle, {queue.get_device()},
                          experimental::properties{experimental::build_options{options}})
          .ext_oneapi_get_kernel(spirv.name));
}

void handle_forks() {
  // Registered in the child, it comes before all that the runtime registered in the parent.
  const auto in_child = [] {
    if (!table().was_forked()) return;
    on_exit(
        [](int status, void*) {
          std::fflush(nullptr);
          _exit(status);
        },
        nullptr);
  };
  pthread_atfork(nullptr, nullptr, in_child);
}

}  // namespace exactile::sycl
