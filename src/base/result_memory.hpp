// src/base/result_memory.hpp - memory for large results on the host, kept for the next one.
//
// Fresh memory costs a page fault for every page that is written, which for short sequences takes
// longer than attention. So what a freed result leaves is kept for results of about its size, up to
// EXACTILE_RESULT_CACHE_MIB (256; 0: nothing is kept), the oldest given up first. Huge pages where
// the system has them. No lock: a forked child cannot find one held.
#pragma once

#include <cstdint>

namespace exactile {

/// Memory of one result. Its contents are what was there before.
struct ResultBlock {
  void* data;
  int64_t bytes;
};

/// A block of at least `bytes`, which begins at a page. Throws std::bad_alloc.
ResultBlock* take_result_block(int64_t bytes);

/// The result is gone: keeps the block, or unmaps it.
void give_back_result_block(ResultBlock* block) noexcept;

/// Bytes that are kept now.
int64_t kept_result_bytes();

/// Unmaps all blocks that are kept.
void empty_result_cache();

}  // namespace exactile
