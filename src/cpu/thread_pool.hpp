// src/cpu/thread_pool.hpp - threads that take work-groups from a counter.
#pragma once

#include <cstdint>
#include <functional>

namespace exactile::cpu {

/// Calls work_group(index) for every index in [0, count), on up to `threads` threads, the caller's
/// among them; returns when all are done. Calls from several threads take turns.
void for_each_work_group(int threads, int64_t count,
                         const std::function<void(int64_t)>& work_group);

}  // namespace exactile::cpu
