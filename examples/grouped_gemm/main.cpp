// main.cpp - lengths to list to launch to check, once for every policy.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exactile/scheduler.hpp>
#include <numeric>
#include <thread>
#include <vector>

#include "kernel.hpp"
#include "round_robin.hpp"

namespace {

constexpr int kWorkers = 4, kLaunches = 3;
constexpr int kDepth = 6, kColumns = 20;  // the last column tile is not full
constexpr int kColumnTiles = (kColumns + kBlockN - 1) / kBlockN;

/// The problem: rows of each group, A and B. Small integers: every product and sum is exact.
struct Problem {
  std::vector<int> group_rows = {5, 0, 37, 1, 8, 0, 3};
  std::vector<int> cu_rows = {0};  // (groups + 1,)
  std::vector<int> cu_groups;      // (groups + 1,): 0, 1, 2, ...
  std::vector<float> a, b;

  Problem() : cu_groups(group_rows.size() + 1) {
    for (const int rows : group_rows) cu_rows.push_back(cu_rows.back() + rows);
    std::iota(cu_groups.begin(), cu_groups.end(), 0);
    for (int i = 0; i < cu_rows.back() * kDepth; ++i) a.push_back(i % 7 - 3.0f);
    for (int i = 0; i < num_groups() * kDepth * kColumns; ++i) b.push_back(i % 11 - 5.0f);
  }

  int num_groups() const { return static_cast<int>(group_rows.size()); }

  std::vector<float> expected() const {
    std::vector<float> c(cu_rows.back() * kColumns);
    for (int group = 0; group < num_groups(); ++group) {
      for (int i = cu_rows[group] * kColumns; i < cu_rows[group + 1] * kColumns; ++i) {
        for (int k = 0; k < kDepth; ++k) {
          c[i] += a[i / kColumns * kDepth + k] * b[(group * kDepth + k) * kColumns + i % kColumns];
        }
      }
    }
    return c;
  }
};

/// Runs the work-groups of a launch on kWorkers threads; true when C is right to the last bit. C
/// starts at 0 and tiles add to it, so a tile that is computed twice shows as well as a missing
/// one. There are kLaunches in a row, as a model has layers, with one schedule for all.
template <exactile::TileScheduler Scheduler>
bool launch(const char* name, const Problem& problem, const typename Scheduler::Params& schedule,
            std::int64_t num_tiles) {
  std::vector<float> c(problem.cu_rows.back() * kColumns);
  const GemmParams params{.a = problem.a.data(),
                          .b = problem.b.data(),
                          .c = c.data(),
                          .depth = kDepth,
                          .columns = kColumns};
  const int num_work_groups = Scheduler::num_work_groups(schedule, kWorkers);
  for (int i = 0; i < kLaunches; ++i) {
    std::vector<std::thread> threads;
    for (int worker = 0; worker < kWorkers; ++worker) {
      threads.emplace_back([&params, &schedule, num_work_groups, worker] {
        for (int group = worker; group < num_work_groups; group += kWorkers) {
          grouped_gemm<Scheduler>(params, schedule, group);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<float> expected = problem.expected();
  for (float& x : expected) x *= kLaunches;
  const bool exact = c == expected;
  std::printf("%-20s %4d work-groups for %lld tiles: %s\n", name, num_work_groups,
              static_cast<long long>(num_tiles), exact ? "exact" : "WRONG");
  return exact;
}

}  // namespace

int main() {
  const Problem problem;

  // The compact list: count, allocate, write.
  const exactile::TileListSpec spec{.cu_seqlens_q = problem.cu_rows.data(),
                                    .cu_seqlens_k = problem.cu_groups.data(),
                                    .batch = problem.num_groups(),
                                    .tile_tokens = kBlockM,
                                    .block_n = 1,
                                    .mask = {}};
  std::vector<exactile::TileRecord> records(exactile::count_tiles(spec));
  exactile::write_tiles(spec, records.data());
  const exactile::CompactList list{.records = records.data(),
                                   .num_records = static_cast<int>(records.size()),
                                   .num_heads = kColumnTiles,
                                   .head_major = false};

  // The padded grid needs no list, only the longest group.
  const int max_rows = *std::max_element(problem.group_rows.begin(), problem.group_rows.end());
  const exactile::PaddedGrid grid{.cu_seqlens_q = problem.cu_rows.data(),
                                  .cu_seqlens_k = problem.cu_groups.data(),
                                  .batch = problem.num_groups(),
                                  .num_heads = kColumnTiles,
                                  .max_m_blocks = exactile::num_m_blocks(max_rows, kBlockM),
                                  .tile_tokens = kBlockM};

  int counter = 0;  // shared by the work-groups, which leave it at 0 again
  const int tiles = list.num_tiles();
  bool exact = launch<exactile::Individual>("Individual", problem, grid, tiles);
  exact &= launch<exactile::ValidOnlyIndividual>("ValidOnlyIndividual", problem, list, tiles);
  exact &= launch<exactile::ValidOnlyPersistent>("ValidOnlyPersistent", problem,
                                                 {list, &counter, kWorkers}, tiles);
  exact &= launch<RoundRobin>("RoundRobin", problem, {.list = list, .workers = kWorkers}, tiles);
  return exact ? 0 : 1;
}
