// python/exactile-sycl/launch.cpp - the functions of table.hpp: contexts and devices, a plan's
// memory, launches.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <sycl/ext/oneapi/experimental/raw_kernel_arg.hpp>

#include "runtime.hpp"

namespace exactile::sycl {

/// Made at the first run there, never freed: at exit the runtime is unloaded first.
struct Place {
  ::sycl::context context;
  ::sycl::device device;
  /// Of our own, beside the user's: waiting for it waits for no work of the user's.
  ::sycl::queue side;
};

namespace {

struct CounterOfQueue : Counter {
  ::sycl::queue queue;       ///< kept: no other has its place
  ::sycl::event last_use{};  ///< of a queue that is not in order
};

}  // namespace

struct DeviceMemory {
  ::sycl::context context;
  ::sycl::device device;
  void* data = nullptr;
  std::mutex mutex = {};  // of `counters` as a list
  std::deque<CounterOfQueue> counters = {};
};

namespace {

struct Places {
  std::mutex mutex;
  std::deque<Place> all;         // which stay where they are
  std::atomic<pid_t> owner = 0;  ///< the process of the first; 0: there is none

  static Places& get() {
    static auto& places = *new Places;
    return places;
  }
};

const ::sycl::queue& at(const Queue* queue) {
  return *reinterpret_cast<const ::sycl::queue*>(queue);
}

thread_local std::string last_error_text;

/// What f throws, as a Status: no exception leaves this module.
template <class F>
Status status_of(F f) {
  try {
    f();
    return Status::kDone;
  } catch (const std::bad_alloc&) {
    return Status::kNoMemory;
  } catch (const std::exception& error) {
    last_error_text = error.what();
    return Status::kFailed;
  }
}

Place& find_place(const ::sycl::queue& queue) {
  Places& places = Places::get();
  const std::scoped_lock lock(places.mutex);
  for (Place& place : places.all) {
    if (place.context == queue.get_context() && place.device == queue.get_device()) return place;
  }
  places.owner = getpid();
  return places.all.emplace_back(queue.get_context(), queue.get_device(),
                                 ::sycl::queue(queue.get_context(), queue.get_device()));
}

void* allocate(std::size_t bytes, const ::sycl::device& device, const ::sycl::context& context) {
  void* const memory = ::sycl::malloc_device(std::max<std::size_t>(bytes, 1), device, context);
  if (!memory) throw std::bad_alloc();
  return memory;
}

/// `begun`: set before the first command that uses what the launch holds.
::sycl::event submit(::sycl::queue& queue, const Launch& launch, bool& begun) {
  namespace experimental = ::sycl::ext::oneapi::experimental;
  // What is enqueued here stays together: another thread's run may take the same counter.
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  const bool in_order = queue.is_in_order();
  if (!in_order) queue.ext_oneapi_submit_barrier();
  begun = true;
  auto* const counter = static_cast<CounterOfQueue*>(launch.counter);
  ::sycl::event zeroed;
  if (counter) {
    // By a handler: queue.memset() may go past a barrier that waits for a host task. After the last
    // use by its event too: on a busy CPU a barrier was seen not to wait for other threads'
    // kernels.
    zeroed = queue.submit([&](::sycl::handler& handler) {
      handler.depends_on(counter->last_use);
      handler.memset(counter->data, 0, sizeof(int32_t));
    });
  }
  ::sycl::event done = queue.submit([&](::sycl::handler& handler) {
    handler.depends_on(zeroed);
    handler.set_arg(0, experimental::raw_kernel_arg(launch.params, launch.params_bytes));
    handler.set_arg(1, experimental::raw_kernel_arg(launch.schedule, launch.schedule_bytes));
    const ::sycl::range<1> all(launch.work_groups * launch.threads), group(launch.threads);
    handler.parallel_for(::sycl::nd_range<1>(all, group),
                         *reinterpret_cast<const ::sycl::kernel*>(launch.kernel));
  });
  if (!in_order) {
    if (counter) counter->last_use = done;
    queue.ext_oneapi_submit_barrier();
  }
  return done;
}

// --- the table ----------------------------------------------------------------------------------

const char* last_error() { return last_error_text.c_str(); }

bool was_forked() {
  const pid_t owner = Places::get().owner;
  return owner != 0 && owner != getpid();
}

Status place_of(const Queue* queue, const Place** place) {
  return status_of([&] { *place = &find_place(at(queue)); });
}

Status is_reachable(const Queue* queue, const void* pointer, bool* reachable) {
  return status_of([&] {
    const ::sycl::usm::alloc kind = ::sycl::get_pointer_type(pointer, at(queue).get_context());
    *reachable = kind != ::sycl::usm::alloc::unknown;
  });
}

Status read_memory(const Queue* queue, const void* from, std::size_t bytes, void* to) {
  return status_of([&] {
    ::sycl::queue reader = at(queue);
    reader.wait();
    reader.memcpy(to, from, bytes).wait();
  });
}

void free_memory(DeviceMemory* memory) {
  if (memory->data) ::sycl::free(memory->data, memory->context);
  for (const Counter& counter : memory->counters) ::sycl::free(counter.data, memory->context);
  delete memory;
}

Status make_memory(const Queue* queue, const void* data, std::size_t bytes, DeviceMemory** memory) {
  return status_of([&] {
    Place& place = find_place(at(queue));
    std::unique_ptr<DeviceMemory, decltype(&free_memory)> made(
        new DeviceMemory{.context = place.context, .device = place.device}, free_memory);
    made->data = allocate(bytes, place.device, place.context);
    if (bytes > 0) place.side.memcpy(made->data, data, bytes).wait_and_throw();
    *memory = made.release();
  });
}

void* address_of(const DeviceMemory* memory) { return memory->data; }

Status counter_of(DeviceMemory* memory, const Queue* queue, Counter** counter) {
  return status_of([&] {
    const std::scoped_lock lock(memory->mutex);
    const auto found = std::ranges::find(memory->counters, at(queue), &CounterOfQueue::queue);
    if (found != memory->counters.end()) {
      *counter = &*found;
      return;
    }
    auto* const data =
        static_cast<int32_t*>(allocate(sizeof(int32_t), memory->device, memory->context));
    *counter = &memory->counters.emplace_back(Counter{data}, at(queue));
  });
}

Status launch_and_hold(Queue* queue, const Launch* launch) {
  bool begun = false;
  ::sycl::event done;
  const Status launched =
      status_of([&] { done = submit(const_cast<::sycl::queue&>(at(queue)), *launch, begun); });
  // Where something fails later, what is held is never released: a command may use it.
  if (launched != Status::kDone && !begun) launch->release(launch->held);
  if (launched != Status::kDone) return launched;
  return status_of([&] {
    find_place(at(queue)).side.submit([&](::sycl::handler& handler) {
      handler.depends_on(done);
      handler.host_task([held = launch->held, release = launch->release] { release(held); });
    });
  });
}

constexpr RuntimeTable kTable{.version = kTableVersion,
                              .last_error = last_error,
                              .was_forked = was_forked,
                              .place_of = place_of,
                              .is_reachable = is_reachable,
                              .read_memory = read_memory,
                              .make_memory = make_memory,
                              .free_memory = free_memory,
                              .address_of = address_of,
                              .counter_of = counter_of,
                              .launch = launch_and_hold};

}  // namespace

const RuntimeTable& table() { return kTable; }

void drain() {
  if (was_forked()) return;
  std::vector<::sycl::queue> queues;
  {
    Places& places = Places::get();
    const std::scoped_lock lock(places.mutex);
    for (const Place& place : places.all) queues.push_back(place.side);
  }
  for (::sycl::queue& side : queues) side.wait();  // unlocked: a launch may need one meanwhile
}

}  // namespace exactile::sycl
