// python/exactile-sycl/runtime.cpp - compile, load, allocate, launch.
#include "runtime.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <span>
#include <stdexcept>
#include <sycl/ext/oneapi/experimental/raw_kernel_arg.hpp>

namespace exactile::sycl {
namespace {

namespace experimental = ::sycl::ext::oneapi::experimental;

void* allocate(std::size_t bytes, const ::sycl::device& device, const ::sycl::context& context) {
  void* const memory = ::sycl::malloc_device(std::max<std::size_t>(bytes, 1), device, context);
  if (!memory) throw std::bad_alloc();
  return memory;
}

struct SideQueues {
  std::mutex mutex;
  std::vector<::sycl::queue> queues;
  std::atomic<pid_t> owner = 0;  ///< the process of the first; 0: there is none

  /// Never freed: at exit the runtime goes first.
  static SideQueues& get() {
    static auto& all = *new SideQueues;
    return all;
  }
};

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

::sycl::kernel load(const ::sycl::queue& queue, const Spirv& spirv, int registers) {
  const auto bytes = std::as_bytes(std::span(spirv.image));
  auto bundle = experimental::create_kernel_bundle_from_source(
      queue.get_context(), experimental::source_language::spirv,
      std::vector<std::byte>(bytes.begin(), bytes.end()));
  std::vector<std::string> options;
  if (registers == 256) options.emplace_back("-ze-opt-large-register-file");
  return experimental::build(bundle, {queue.get_device()},
                             experimental::properties{experimental::build_options{options}})
      .ext_oneapi_get_kernel(spirv.name);
}

::sycl::queue side_queue(const ::sycl::queue& queue) {
  SideQueues& sides = SideQueues::get();
  const std::scoped_lock lock(sides.mutex);
  for (const ::sycl::queue& side : sides.queues) {
    if (side.get_context() == queue.get_context() && side.get_device() == queue.get_device()) {
      return side;
    }
  }
  sides.owner = getpid();
  return sides.queues.emplace_back(queue.get_context(), queue.get_device());
}

bool was_forked() {
  const pid_t owner = SideQueues::get().owner;
  return owner != 0 && owner != getpid();
}

void handle_forks() {
  // Registered in the child, it comes before all that the runtime registered in the parent.
  const auto in_child = [] {
    if (!was_forked()) return;
    on_exit(
        [](int status, void*) {
          std::fflush(nullptr);
          _exit(status);
        },
        nullptr);
  };
  pthread_atfork(nullptr, nullptr, in_child);
}

void drain() {
  if (was_forked()) return;
  std::vector<::sycl::queue> queues;
  {
    SideQueues& sides = SideQueues::get();
    const std::scoped_lock lock(sides.mutex);
    queues = sides.queues;
  }
  for (::sycl::queue& side : queues) side.wait();  // unlocked: a launch may need one meanwhile
}

PlanMemory::PlanMemory(const ::sycl::queue& queue, const void* data, std::size_t bytes)
    : context_(queue.get_context()),
      device_(queue.get_device()),
      data_(allocate(bytes, device_, context_)) {
  if (bytes > 0) side_queue(queue).memcpy(data_, data, bytes).wait_and_throw();
}

PlanMemory::~PlanMemory() {
  ::sycl::free(data_, context_);
  for (const auto& [queue, counter] : counters_) ::sycl::free(counter, context_);
}

int32_t* PlanMemory::counter(const ::sycl::queue& queue) {
  const std::scoped_lock lock(mutex_);
  for (const auto& [user, counter] : counters_) {
    if (user == queue) return counter;
  }
  auto* const counter = static_cast<int32_t*>(allocate(sizeof(int32_t), device_, context_));
  counters_.emplace_back(queue, counter);
  return counter;
}

::sycl::event launch(::sycl::queue& queue, const ::sycl::kernel& kernel, const Launch& launch) {
  // What is enqueued here stays together: another thread's run may take the same counter.
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  const bool in_order = queue.is_in_order();
  if (!in_order) queue.ext_oneapi_submit_barrier();
  ::sycl::event zeroed;
  if (launch.counter) zeroed = queue.memset(launch.counter, 0, sizeof(int32_t));
  ::sycl::event done = queue.submit([&](::sycl::handler& handler) {
    handler.depends_on(zeroed);
    handler.set_arg(0, experimental::raw_kernel_arg(launch.params, launch.params_bytes));
    handler.set_arg(1, experimental::raw_kernel_arg(launch.schedule, launch.schedule_bytes));
    const ::sycl::range<1> all(launch.work_groups * launch.threads), group(launch.threads);
    handler.parallel_for(::sycl::nd_range<1>(all, group), kernel);
  });
  if (!in_order) queue.ext_oneapi_submit_barrier();
  return done;
}

}  // namespace exactile::sycl
