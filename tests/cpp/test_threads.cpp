// tests/cpp/test_threads.cpp - workers of the persistent policy that really run at the same time
// share out the tiles: none is computed twice, none is left.
#include <atomic>
#include <exactile/scheduler/persistent.hpp>
#include <thread>
#include <vector>

#include "check.hpp"

namespace exactile::test {
namespace {

/// Launches are repeated with the counter as the one before left it.
void check_workers(int32_t workers) {
  constexpr int32_t kNumRecords = 20000, kNumHeads = 3;
  std::vector<TileRecord> records;
  for (int32_t i = 0; i < kNumRecords; ++i) {
    records.push_back({.q_begin = i, .q_end = i + 1, .k_begin = i, .k_len = 1});
  }
  std::vector<std::atomic<int32_t>> seen(kNumRecords * kNumHeads);
  int32_t counter = 0;
  const CompactList list{.records = records.data(),
                         .num_records = kNumRecords,
                         .num_heads = kNumHeads,
                         .head_major = false};
  const CountedList params(list, &counter, workers);
  for (int launch = 1; launch <= 3; ++launch) {
    std::vector<std::thread> threads;
    for (int32_t work_group = 0; work_group < workers; ++work_group) {
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
  EXACTILE_CHECK(counter == 0, "counter " << counter);
}

}  // namespace
}  // namespace exactile::test

int main() {
  for (const int workers : {1, 2, 8}) {
    exactile::test::check_workers(workers);
  }
  return exactile::test::report();
}
