// src/base/result_memory.cpp - takes, keeps and frees memory for results.
#include "base/result_memory.hpp"

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace exactile {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kDefaultLimit = 256;  ///< MiB
constexpr int kSlots = 16;

constinit std::array<std::atomic<ResultBlock*>, kSlots> slots{};
constinit std::atomic<uint32_t> next_slot{0};  ///< the oldest block's
constinit std::atomic<int64_t> kept_bytes{0};
constinit std::atomic<int64_t> limit_bytes{-1};  ///< -1: the environment was not read yet

int64_t read_limit() {
  const char* const text = std::getenv("EXACTILE_RESULT_CACHE_MIB");
  if (!text || !*text) return kDefaultLimit << 20;
  const char* const end = text + std::strlen(text);
  int32_t mib = 0;
  const auto [parsed_to, error] = std::from_chars(text, end, mib);
  if (error != std::errc() || parsed_to != end || mib < 0) {
    throw std::invalid_argument(
        "EXACTILE_RESULT_CACHE_MIB: expected a whole number of MiB from 0 to 2147483647, got '" +
        std::string(text) + "'");
  }
  return int64_t{mib} << 20;
}

/// Maps `bytes`, a multiple of a huge page, at a multiple of it; null: no memory.
void* map(int64_t bytes) {
  const int64_t mapped = bytes + kHugePage;
  void* const memory =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  const int64_t before = -reinterpret_cast<int64_t>(memory) & (kHugePage - 1);
  char* const data = static_cast<char*>(memory) + before;
  if (before > 0) munmap(memory, before);
  if (before < kHugePage) munmap(data + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
  madvise(data, bytes, MADV_HUGEPAGE);  // refused by systems without: small pages then
#endif
  return data;
}

void unmap(ResultBlock* block) noexcept {
  if (!block) return;
  munmap(block->data, block->bytes);
  delete block;
}

/// What the slot held, which is the caller's alone then.
ResultBlock* take_from(std::atomic<ResultBlock*>& slot) noexcept {
  ResultBlock* const block = slot.exchange(nullptr);
  if (block) kept_bytes -= block->bytes;
  return block;
}

}  // namespace

ResultBlock* take_result_block(int64_t bytes) {
  if (limit_bytes < 0) limit_bytes = read_limit();
  for (std::atomic<ResultBlock*>& slot : slots) {
    ResultBlock* const block = take_from(slot);
    if (!block) continue;
    // A block half empty would keep its pages from others.
    if (block->bytes >= bytes && block->bytes / 2 <= bytes) return block;
    kept_bytes += block->bytes;
    ResultBlock* empty = nullptr;
    if (!slot.compare_exchange_strong(empty, block)) {
      kept_bytes -= block->bytes;
      unmap(block);
    }
  }
  const int64_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  auto* const block = new ResultBlock{.data = nullptr, .bytes = rounded};
  block->data = map(rounded);
  if (!block->data) {
    empty_result_cache();
    block->data = map(rounded);
  }
  if (block->data) return block;
  delete block;
  throw std::bad_alloc();
}

void give_back_result_block(ResultBlock* block) noexcept {
  const int64_t limit = limit_bytes;
  if (block->bytes > limit) return unmap(block);
  const uint32_t at = next_slot++;
  kept_bytes += block->bytes;
  ResultBlock* const oldest = slots[at % kSlots].exchange(block);
  if (oldest) kept_bytes -= oldest->bytes;
  unmap(oldest);
  for (uint32_t i = 1; kept_bytes > limit && i < kSlots; ++i) {
    unmap(take_from(slots[(at + i) % kSlots]));
  }
}

int64_t kept_result_bytes() { return kept_bytes; }

void empty_result_cache() {
  for (std::atomic<ResultBlock*>& slot : slots) unmap(take_from(slot));
}

}  // namespace exactile
