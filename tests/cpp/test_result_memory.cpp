// tests/cpp/test_result_memory.cpp - blocks that threads take and give back at the same time: no
// two hold the same one, and no more is kept than the bound.
#include "base/result_memory.hpp"

#include <atomic>
#include <thread>
#include <vector>

#include "check.hpp"

namespace exactile::test {
namespace {

constexpr int64_t kMiB = 1 << 20;

/// Takes two blocks at a time and marks both; returns how often a mark was not its own.
int wrong_marks(int thread) {
  int wrong = 0;
  for (int i = 0; i < 300; ++i) {
    ResultBlock* const blocks[] = {take_result_block((4 + i % 7) * kMiB),
                                   take_result_block((40 + thread) * kMiB)};
    for (int j = 0; j < 2; ++j) *static_cast<int*>(blocks[j]->data) = 1000 * thread + j;
    std::this_thread::yield();
    for (int j = 0; j < 2; ++j) {
      wrong += *static_cast<int*>(blocks[j]->data) != 1000 * thread + j;
      give_back_result_block(blocks[j]);
    }
    if (i % 100 == 50) empty_result_cache();
  }
  return wrong;
}

}  // namespace
}  // namespace exactile::test

int main() {
  using namespace exactile;
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([thread, &wrong] { wrong += test::wrong_marks(thread); });
  }
  for (std::thread& thread : threads) thread.join();
  EXACTILE_CHECK(wrong == 0, wrong << " marks");
  EXACTILE_CHECK(kept_result_bytes() > 0 && kept_result_bytes() <= 256 * test::kMiB,
                 kept_result_bytes() << " bytes");
  empty_result_cache();
  EXACTILE_CHECK(kept_result_bytes() == 0, kept_result_bytes() << " bytes");
  return test::report();
}
