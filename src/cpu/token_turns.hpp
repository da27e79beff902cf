// src/cpu/token_turns.hpp - threads go through the tokens of arrays, some at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/thread_pool.hpp"

namespace exactile::cpu {

/// Calls compute(begin, end) for disjoint ranges, until all `num_tokens` are computed.
/// `check` as Run's.
template <class Compute>
void for_tokens(int64_t num_tokens, int threads, void (*check)(), const Compute& compute) {
  constexpr int64_t kTokens = 16;  // at a time: a cache line of float32
  std::atomic<int64_t> next{0};
  const auto take = [&](const Turn& turn) {
    while (!turn.is_over()) {
      const int64_t begin = next++ * kTokens;
      if (begin >= num_tokens) return false;
      compute(begin, std::min(begin + kTokens, num_tokens));
    }
    return true;
  };
  const int64_t turns = (num_tokens + kTokens - 1) / kTokens;
  run_on_threads({.threads = static_cast<int>(std::min<int64_t>(threads, turns)),
                  .compute = take,
                  .check = check});
}

}  // namespace exactile::cpu
