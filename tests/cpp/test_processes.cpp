// tests/cpp/test_processes.cpp - the parts of a build: each runs once, in a process of its own, no
// more than so many at a time, and none after one has failed.
#include "jit/processes.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "check.hpp"

namespace exactile::test {
namespace {

constexpr std::size_t kParts = 20;

/// What the processes share.
struct Shared {
  std::atomic<int> runs[kParts];
  std::atomic<int> running, most_running;
};

Shared& make_shared_memory() {
  void* const memory =
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return *new (memory) Shared{};
}

/// The part `failing`, if there is one, throws.
void check(std::size_t jobs, std::size_t failing) {
  Shared& shared = make_shared_memory();
  std::vector<std::size_t> reported;
  const auto run = [&](std::size_t part) {
    const int running = ++shared.running;
    int most = shared.most_running;
    while (most < running && !shared.most_running.compare_exchange_weak(most, running)) {
    }
    ++shared.runs[part];
    usleep(2000);
    --shared.running;
    if (part == failing) throw std::runtime_error("part " + std::to_string(part));
  };
  const bool good = jit::run_in_processes("test_processes", kParts, jobs, run,
                                          [&](std::size_t n) { reported.push_back(n); });
  const auto has_run = [](const std::atomic<int>& runs) { return runs == 1; };
  const std::size_t ran = std::ranges::count_if(shared.runs, has_run);
  EXACTILE_CHECK(good == (failing >= kParts), "jobs " << jobs << ", failing " << failing);
  EXACTILE_CHECK(ran == reported.size() && (good ? ran == kParts : ran > failing), ran << " ran");
  EXACTILE_CHECK(good || jobs > 1 || ran == failing + 1, ran << " ran one by one");
  for (std::size_t i = 0; i < reported.size(); ++i) {
    EXACTILE_CHECK(reported[i] == i + 1, "report " << i << ": " << reported[i]);
  }
  EXACTILE_CHECK(shared.most_running <= static_cast<int>(jobs), shared.most_running << " at once");
}

}  // namespace
}  // namespace exactile::test

int main() {
  for (const std::size_t jobs : {1, 3, 40}) {
    exactile::test::check(jobs, exactile::test::kParts);
    exactile::test::check(jobs, 4);
  }
  return exactile::test::report();
}
