// tests/cpp/test_threads.cpp - workers of the persistent policy that really run at the same time
// share out the tiles: none is computed twice, none is left.
#include <atomic>
#include <exactile/scheduler/persistent.hpp>
#include <thread>
#include <vector>

#include "check.hpp"

namespace exactile::test {
namespace {

/// `leaves_zero`: the launch is to leave its counter at 0, and is repeated with it.
void check_workers(int32_t workers, bool leaves_zero) {
  constexpr int32_t kNumRecords = 20000, kNumHeads = 3;
  std::vector<TileRecord> records;
  for (int32_t i = 0; i < kNumRecords; ++i) {
    records.push_back({.q_begin = i, .q_end = i + 1, .k_begin = i, .k_len = 1});
  }
  std::vector<std::atomic<int32_t>> seen(kNumRecords * kNumHeads);
  int32_t counter = 0;
  ValidOnlyPersistent::Params params{.list = {.records = records.data(),
                                              .num_records = kNumRecords,
                                              .num_heads = kNumHeads,
                                              .head_major = false},
                                     .counter = &counter};
  const int32_t num_work_groups = ValidOnlyPersistent::num_work_groups(params, workers);
  if (leaves_zero) params.work_groups = num_work_groups;
  for (int launch = 1; launch <= (leaves_zero ? 3 : 1); ++launch) {
    std::vector<std::thread> threads;
    for (int32_t work_group = 0; work_group < num_work_groups; ++work_group) {
      threads.emplace_back([&params, &seen, work_group] {
        for (ValidOnlyPersistent walk(params, work_group); walk.is_valid(); walk.advance()) {
          const WorkTile tile = walk.tile();
          ++seen[tile.rows.q_begin * kNumHeads + tile.head];
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < seen.size(); ++i) {
      EXACTILE_CHECK(seen[i] == launch,
                     "tile " << i << " seen " << seen[i] << " times by " << workers);
    }
  }
  // Each worker takes one index past the end: the planner keeps room for that in 31 bits.
  const int32_t left = leaves_zero ? 0 : kNumRecords * kNumHeads + workers;
  EXACTILE_CHECK(counter == left, "counter " << counter);
}

}  // namespace
}  // namespace exactile::test

int main() {
  for (const int workers : {1, 2, 8}) {
    exactile::test::check_workers(workers, false);
    exactile::test::check_workers(workers, true);
  }
  return exactile::test::report();
}
