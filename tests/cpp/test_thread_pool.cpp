// tests/cpp/test_thread_pool.cpp - the CPU backend's threads: runs share them, errors come out on
// the caller with nothing left behind, a forked child has a pool of its own.
#include "cpu/thread_pool.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "cpu/resumable.hpp"

namespace exactile::test {
namespace {

using cpu::Run;
using cpu::Turn;

/// A run of `num_tiles` calls of tile(index), shared out by a counter.
template <class Tile>
void run_tiles(int threads, int num_tiles, const Tile& tile, void (*check)() = nullptr) {
  std::atomic<int> next{0};
  cpu::run_on_threads({.threads = threads,
                       .compute =
                           [&](const Turn& turn) {
                             while (!turn.is_over()) {
                               const int index = next++;
                               if (index >= num_tiles) return false;
                               tile(index);
                             }
                             return true;
                           },
                       .check = check});
}

void spin_until(const std::atomic<bool>& flag) {
  while (!flag) std::this_thread::yield();
}

bool sees_every_tile_once(int threads, int num_tiles) {
  std::vector<std::atomic<int>> seen(num_tiles);
  run_tiles(threads, num_tiles, [&](int index) { ++seen[index]; });
  return std::ranges::all_of(seen, [](int times) { return times == 1; });
}

void check_every_tile_once(int threads, int num_tiles) {
  EXACTILE_CHECK(sees_every_tile_once(threads, num_tiles),
                 num_tiles << " tiles, " << threads << " threads");
}

void runs_of_several_callers() {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller, &wrong] {
      for (int i = 0; i < 200; ++i) wrong += !sees_every_tile_once(1 + (i + caller) % 5, i);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXACTILE_CHECK(wrong == 0, wrong << " runs");
}

/// The long run ends when the short one has ended: it never does where runs take turns as wholes.
void short_run_does_not_wait_for_a_long_one() {
  std::atomic<bool> long_runs{false}, short_is_done{false};
  std::thread long_caller([&] {
    run_tiles(4, 8, [&](int) {
      long_runs = true;
      spin_until(short_is_done);
    });
  });
  spin_until(long_runs);
  check_every_tile_once(4, 10);
  short_is_done = true;
  long_caller.join();
}

/// The first run has tiles without end, until a helper has come to the second run.
void helpers_go_to_every_run() {
  std::atomic<bool> first_has_helper{false}, second_has_helper{false};
  std::thread first_caller([&] {
    const auto caller = std::this_thread::get_id();
    cpu::run_on_threads({.threads = 2, .compute = [&](const Turn& turn) {
                           while (!second_has_helper && !turn.is_over()) {
                             if (std::this_thread::get_id() != caller) first_has_helper = true;
                             std::this_thread::yield();
                           }
                           return !second_has_helper;
                         }});
  });
  spin_until(first_has_helper);
  const auto caller = std::this_thread::get_id();
  run_tiles(2, 2, [&](int) {
    if (std::this_thread::get_id() == caller) spin_until(second_has_helper);
    second_has_helper = true;
  });
  first_caller.join();
}

/// What a thread throws reaches the caller when no other thread uses the run's memory any more.
void errors_reach_the_caller(bool of_caller) {
  const auto caller = std::this_thread::get_id();
  for (int i = 0; i < 100; ++i) {
    std::atomic<bool> has_thrown{false};
    std::atomic<int> inside{0};
    bool caught = false;
    try {
      run_tiles(4, 1 << 30, [&](int) {
        ++inside;
        if (i % 2) std::this_thread::yield();
        const bool throws = (std::this_thread::get_id() == caller) == of_caller;
        if (throws) has_thrown = true;
        --inside;
        if (throws) throw std::bad_alloc();
      });
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    EXACTILE_CHECK(caught && has_thrown && inside == 0,
                   "caught " << caught << ", inside " << inside);
    check_every_tile_once(4, 100);
  }
}

struct Interrupted {};

void check_ends_a_run() {
  for (const int threads : {1, 3}) {
    bool caught = false;
    try {
      run_tiles(
          threads, 1 << 30, [](int) { std::this_thread::yield(); }, [] { throw Interrupted(); });
    } catch (const Interrupted&) {
      caught = true;
    }
    EXACTILE_CHECK(caught, "the check's exception got lost with " << threads << " threads");
    check_every_tile_once(threads, 100);
  }
}

/// The caller has no tile left, and a helper's is long: the check is called meanwhile.
void check_while_helpers_finish() {
  static std::atomic<bool> interrupted;
  interrupted = false;
  const auto caller = std::this_thread::get_id();
  std::atomic<bool> helper_began{false};
  bool caught = false;
  try {
    run_tiles(
        2, 2,
        [&](int) {
          if (std::this_thread::get_id() == caller) return spin_until(helper_began);
          helper_began = true;
          spin_until(interrupted);
        },
        [] {
          interrupted = true;
          throw Interrupted();
        });
  } catch (const Interrupted&) {
    caught = true;
  }
  EXACTILE_CHECK(caught, "the check's exception got lost");
}

void forked_child_has_a_pool_of_its_own() {
#if !defined(__SANITIZE_THREAD__)  // which knows no threads after a fork
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) sees_every_tile_once(3, 50);
  });
  for (int i = 0; i < 300; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(sees_every_tile_once(3, 20) ? 0 : 1);
    int status = -1;
    waitpid(child, &status, 0);
    EXACTILE_CHECK(status == 0, "child " << i << " ended with status " << status);
  }
  stop = true;
  other.join();
#endif
}

/// Walks that are left after every tile see each tile once, as one long walk does.
void resumable_walks() {
  constexpr int kNumRecords = 50, kNumHeads = 3;
  std::vector<TileRecord> records;
  for (int i = 0; i < kNumRecords; ++i) {
    records.push_back({.q_begin = i, .q_end = i + 1, .k_begin = i, .k_len = 1});
  }
  const CompactList list{.records = records.data(),
                         .num_records = kNumRecords,
                         .num_heads = kNumHeads,
                         .head_major = false};
  for (const bool leaves : {false, true}) {
    int32_t counter = 0;
    const cpu::ResumableList params{
        .counted = CountedList(list, &counter, std::numeric_limits<int32_t>::max()),
        .is_over = [](const void* leave) { return *static_cast<const bool*>(leave); },
        .turn = &leaves};
    std::vector<int> seen(kNumRecords * kNumHeads);
    int walks = 0;
    for (; counter < list.num_tiles(); ++walks) {
      for (cpu::Resumable<ValidOnlyPersistent> walk(params, 0); walk.is_valid(); walk.advance()) {
        ++seen[walk.tile().rows.q_begin * kNumHeads + walk.tile().head];
      }
    }
    for (const int times : seen) EXACTILE_CHECK(times == 1, "seen " << times << " times");
    EXACTILE_CHECK(walks == (leaves ? list.num_tiles() : 1), walks << " walks");
  }
}

void a_run_gets_no_more_threads_than_kMaxThreads() {
  std::atomic<int> inside{0}, most{0};
  try {
    run_tiles(1 << 30, 5000, [&](int) {
      const int now = ++inside;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) continue;
      --inside;
    });
  } catch (const std::runtime_error& error) {  // a system that allows fewer
    EXACTILE_CHECK(
        std::string(error.what()).find("expected to start 1023 threads") != std::string::npos,
        error.what());
  }
  EXACTILE_CHECK(most <= cpu::kMaxThreads, most << " threads at a time");
}

}  // namespace
}  // namespace exactile::test

int main() {
  using namespace exactile::test;
  for (const int threads : {1, 2, 5}) {
    for (const int num_tiles : {0, 1, 2, 1000}) check_every_tile_once(threads, num_tiles);
  }
  runs_of_several_callers();
  short_run_does_not_wait_for_a_long_one();
  helpers_go_to_every_run();
  errors_reach_the_caller(true);
  errors_reach_the_caller(false);
  check_ends_a_run();
  check_while_helpers_finish();
  forked_child_has_a_pool_of_its_own();
  resumable_walks();
  a_run_gets_no_more_threads_than_kMaxThreads();
  return report();
}
