// tests/cpp/test_cuda_launch.cpp - what launches ask of the driver, with a fake one: when lists are
// uploaded, who waits for them, whose counter it is, when memory is used again; and that only calls
// for the same kernel wait for its compilation.
#include <chrono>
#include <future>
#include <thread>

#include "check.hpp"
#include "cuda/launch.hpp"
#include "cuda/plan_memory.hpp"
#include "cuda_plan.hpp"
#include "fake_driver.hpp"
#include "jit/cache.hpp"

namespace exactile::test {
namespace {

/// Of the fake compiler: waits while `held`, notes every search.
struct Compiler {
  std::atomic<bool> holds = false;
  std::atomic<int> waiting = 0, found = 0;
};
Compiler compiler;

}  // namespace
}  // namespace exactile::test

namespace exactile {

/// Only kernels of head_dim 256 are slow.
jit::Found jit::find(const Program& program, Search /*search*/) {
  ++test::compiler.found;
  if (program.name_expression.find(", 256, 256,") != std::string::npos) {
    ++test::compiler.waiting;
    while (test::compiler.holds) std::this_thread::yield();
  }
  return {.binary = std::make_shared<Binary>(), .origin = Origin::kCompiler};
}

namespace test {
namespace {

struct Options {
  int32_t head_dim = 64;
  SchedulerKind scheduler = SchedulerKind::kValidOnlyPersistent;
  std::shared_ptr<const UserScheduler> user = nullptr;
  Stream planner_stream = nullptr;  ///< lengths are on device 0, and planned on this stream
};

Plan make_plan(const Options& options = {}) {
  Plan plan = plan_of_one_head(options.head_dim);
  plan.cu_seqlens_q = plan.cu_seqlens_k = {0, 100};
  plan.scheduler = options.scheduler;
  plan.num_records = plan.valid = plan.launched = 1;
  if (options.head_dim == 256) plan.block_m = plan.tile_tokens = 128;
  plan.user_scheduler = options.user;
  if (options.planner_stream) {
    plan.device_lengths = {.cu_seqlens_q = nullptr,
                           .cu_seqlens_k = nullptr,
                           .seqused_q = nullptr,
                           .seqused_k = nullptr,
                           .device = 0,
                           .stream = reinterpret_cast<uint64_t>(options.planner_stream)};
    enqueue_planner(plan);
  } else {
    plan.records.reset(new TileRecord[1]{{0, 100, 0, 100}});
  }
  return plan;
}

PrefillArgs make_args(const Plan& plan, Stream stream, int device = 0) {
  alignas(16) static std::byte memory[1];
  const ArrayRef array{.data = memory,
                       .rank = 3,
                       .shape = {100, 1, plan.head_dim, 1},
                       .strides = {plan.head_dim, plan.head_dim, 1, 1},
                       .dtype = plan.dtype,
                       .device = {kDeviceCuda, device}};
  return {.q = array,
          .k = array,
          .v = array,
          .out = array,
          .options = {.softmax_scale = 1, .stream = reinterpret_cast<uint64_t>(stream)}};
}

/// What a launch asked of the driver.
std::string run(const Plan& plan, StreamTag& stream) {
  cuda::launch(plan, make_args(plan, &stream));
  return gpu.take_notes();
}

void expect(const std::string& got, const std::string& expected) {
  EXACTILE_CHECK(got == expected, "\n  got      " << got << "\n  expected " << expected);
}

const int32_t* address_of(const Plan& plan) {
  return static_cast<DevicePlans&>(*plan.memory)
      .on(cuda::Device::get(0), plan)
      .lists(plan)
      .cu_seqlens_q;
}

void check_lists_of_the_host() {
  gpu.forget_names();
  StreamTag s1{"s1"}, s2{"s2"}, s3{"s3"};
  const Plan plan = make_plan();
  expect(run(plan, s1), "copy s1; record a s1; launch s1; record b s1; ");
  expect(run(plan, s1), "launch s1; record b s1; ");
  expect(run(plan, s2), "wait a s2; zero s2; launch s2; record c s2; ");
  expect(run(plan, s2), "wait a s2; launch s2; record c s2; ");
  gpu.finish();
  expect(run(plan, s3), "zero s3; launch s3; record d s3; ");
  expect(run(plan, s2), "launch s2; record c s2; ");
}

/// A graph does not upload, nor wait for what is outside of it; each launch in it has a counter.
void check_graphs() {
  gpu.forget_names();
  StreamTag s1{"s1", true}, s2{"s2"};
  const Plan first_in_graph = make_plan();
  expect(run(first_in_graph, s1), "copy side; record a side; sync a; launch s1; ");
  expect(run(first_in_graph, s1), "zero s1; launch s1; ");
  expect(run(first_in_graph, s2), "zero s2; launch s2; record b s2; ");
  gpu.forget_names();
  const Plan then_in_graph = make_plan();
  expect(run(then_in_graph, s2), "copy s2; record a s2; launch s2; record b s2; ");
  expect(run(then_in_graph, s1), "sync a; zero s1; launch s1; ");
}

void check_policies() {
  StreamTag s1{"s1"}, s2{"s2"};
  gpu.forget_names();
  const Plan uncounted = make_plan({.scheduler = SchedulerKind::kValidOnlyIndividual});
  expect(run(uncounted, s1), "copy s1; record a s1; launch s1; record b s1; ");
  expect(run(uncounted, s2), "wait a s2; launch s2; record c s2; ");
  gpu.forget_names();
  const Plan own = make_plan(
      {.user = std::make_shared<UserScheduler>(UserScheduler{"Own", "text", kDefaultScheduler})});
  expect(run(own, s1), "copy s1; record a s1; launch s1; record b s1; ");
  expect(run(own, s1), "zero s1; launch s1; record b s1; ");  // who knows how it left the counter
}

/// On its own stream a planner and the first launch overlap: no event is between them.
void check_planner() {
  StreamTag s1{"s1"}, s2{"s2"}, graph{"graph", true};
  gpu.forget_names();
  {
    const Plan plan = make_plan({.planner_stream = &s1});
    expect(run(plan, s1), "launch s1; launch s1; record a s1; ");
    expect(run(plan, s2), "record b s1; wait b s2; zero s2; launch s2; record c s2; ");
    expect(run(plan, s1), "launch s1; record a s1; ");
    expect(run(plan, graph), "sync b; zero graph; launch graph; ");
  }
  expect(gpu.take_notes(), "");
  gpu.forget_names();
  make_plan({.planner_stream = &s1});
  expect(gpu.take_notes(), "launch s1; record a s1; ");
  gpu.forget_names();
  const Plan captured = make_plan({.planner_stream = &graph});
  expect(run(captured, graph), "launch graph; launch graph; ");
  expect(run(captured, s2), "zero s2; launch s2; record a s2; ");
  const std::string refused = refusal(captured, make_args(captured, &s1, 1));
  expect(refused, "expected arrays on CUDA 0, where cu_seqlens are, got them on CUDA 1");
}

/// Planned before its stream is captured, run first when it is: an event cannot be recorded there.
void check_planner_before_a_capture() {
  StreamTag s1{"s1"}, s2{"s2"};
  gpu.forget_names();
  {
    const Plan plan = make_plan({.planner_stream = &s1});
    gpu.take_notes();
    s1.capturing = true;
    for (StreamTag* const stream : {&s1, &s2}) {
      std::string error;
      try {
        run(plan, *stream);
      } catch (const std::invalid_argument& refused) {
        error = refused.what();
      }
      EXACTILE_CHECK(error.find("made in the capture or run before it") != error.npos, error);
      expect(gpu.take_notes(), "");
    }
    s1.capturing = false;
    expect(run(plan, s2), "record a s1; wait a s2; launch s2; record b s2; ");
    s1.capturing = true;
    expect(run(plan, s1), "sync a; zero s1; launch s1; ");
  }
  gpu.take_notes();
  auto never_run = std::make_unique<Plan>(make_plan({.planner_stream = &s2}));
  const int32_t* const address = address_of(*never_run);
  s2.capturing = true;
  never_run.reset();
  gpu.finish();
  for (int i = 0; i < 3; ++i) {
    const Plan meanwhile = make_plan();
    EXACTILE_CHECK(address_of(meanwhile) != address, "block " << i);
  }
}

/// Freed at once, used again when its launches are over.
void check_memory() {
  StreamTag s1{"s1"};
  auto plan = std::make_unique<Plan>(make_plan());
  gpu.finish();
  run(*plan, s1);
  const int32_t* const address = address_of(*plan);
  plan.reset();
  for (int i = 0; i < 20; ++i) {
    const Plan meanwhile = make_plan();
    EXACTILE_CHECK(address_of(meanwhile) != address, "block " << i);
    run(meanwhile, s1);
  }
  gpu.finish();
  const int allocations = gpu.allocations;
  for (int i = 0; i < 20; ++i) run(make_plan(), s1);
  gpu.finish();
  EXACTILE_CHECK(gpu.allocations == allocations, gpu.allocations << " after " << allocations);
}

/// A kernel is looked for once: plans with the same numbers, or with an own policy of the same
/// text, find what is loaded.
void check_loaded_kernels() {
  StreamTag s1{"s1"};
  const auto found = [&](const std::string& source, bool shipped = false) {
    const int before = compiler.found;
    run(make_plan({.head_dim = 128,
                   .user = shipped ? nullptr
                                   : std::make_shared<UserScheduler>(
                                         UserScheduler{"Own", source, kDefaultScheduler})}),
        s1);
    return compiler.found - before;
  };
  EXACTILE_CHECK(found("", true) == 1 && found("", true) == 0, "shipped");
  EXACTILE_CHECK(found("text") == 1 && found("text") == 0, "the same text");
  EXACTILE_CHECK(found("other text") == 1 && found("text") == 0, "another text");
}

/// While a kernel is compiled, plans that want another one get theirs, and memory.
void check_compilation() {
  StreamTag s1{"s1"}, s2{"s2"};
  const Plan slow = make_plan({.head_dim = 256});
  compiler.holds = true;
  std::thread first([&] { cuda::launch(slow, make_args(slow, &s1)); });
  std::thread same([&] { cuda::launch(slow, make_args(slow, &s2)); });
  while (compiler.waiting == 0) std::this_thread::yield();
  auto others = std::async(std::launch::async, [&] {
    const std::scoped_lock lock(static_cast<DevicePlans&>(*slow.memory).mutex());
    for (int i = 0; i < 3; ++i) {
      run(make_plan(), s2);                                           // its kernel is loaded
      run(make_plan({.scheduler = SchedulerKind::kIndividual}), s2);  // its is not, at first
    }
  });
  const bool held_up = others.wait_for(std::chrono::seconds(30)) != std::future_status::ready;
  EXACTILE_CHECK(!held_up, "a compilation held up who does not want it");
  compiler.holds = false;
  first.join();
  same.join();
  others.wait();
  EXACTILE_CHECK(compiler.waiting == 1, compiler.waiting << " compilations of one kernel");
}

/// Threads with one plan, each on a stream of its own.
void check_threads() {
  const Plan plan = make_plan();
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&plan, thread] {
      StreamTag stream{"s" + std::to_string(thread)};
      for (int i = 0; i < 100; ++i) {
        cuda::launch(plan, make_args(plan, &stream));
        const Plan own = make_plan();
        cuda::launch(own, make_args(own, &stream));
        if (i % 20 == 10) gpu.finish();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace test
}  // namespace exactile

int main() {
  using namespace exactile::test;
  check_lists_of_the_host();
  check_graphs();
  check_policies();
  check_planner();
  check_planner_before_a_capture();
  check_memory();
  check_loaded_kernels();
  check_compilation();
  check_threads();
  return report();
}
