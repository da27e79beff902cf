// exactile/scheduler/concepts.hpp - what a tile is, and the duties of an order and of a scheduler.
//
// A kernel is written against these two concepts and knows no policy:
//
//   template <class Traits, TileScheduler Scheduler>
//   void kernel(Params params, typename Scheduler::Params schedule, int32_t work_group) {
//     for (Scheduler s(schedule, work_group); s.is_valid(); s.advance()) compute(s.tile());
//   }
#pragma once

#include <exactile/platform.hpp>

namespace exactile {

/// One query tile of one sequence, without its head: all that a kernel needs to find its rows, in
/// one 16-byte load and without reading cu_seqlens again. Shared by all heads.
///
/// A list with packed sequences (TileListSpec::packed_len) also has tiles of several sequences; a
/// field's meaning in those, where it differs, stands after the slash.
struct alignas(16) TileRecord {
  int32_t q_begin;  ///< first row of the tile in the packed query tensor
  int32_t q_end;    ///< end of the *sequence's* rows there (so q_end - row gives a row's position)
                    ///< / ~(first sequence), which is negative
  int32_t k_begin;  ///< first row of the sequence (/ sequences) in the packed key tensor; where
                    ///< keys lie in pages (PagedKv), the number of the sequence
  int32_t k_len;    ///< number of keys of the sequence / tokens << kPackedKeyBits | number of keys

  static constexpr int32_t kPackedKeyBits = 20;

  /// A tile of several sequences.
  EXACTILE_HOST_DEVICE static constexpr TileRecord packed(int32_t q_begin, int32_t first_sequence,
                                                          int32_t k_begin, int32_t tokens,
                                                          int32_t keys) {
    return {q_begin, ~first_sequence, k_begin, tokens << kPackedKeyBits | keys};
  }
  EXACTILE_HOST_DEVICE constexpr bool is_packed() const { return q_end < 0; }
  EXACTILE_HOST_DEVICE constexpr int32_t first_sequence() const { return ~q_end; }
  EXACTILE_HOST_DEVICE constexpr int32_t packed_tokens() const { return k_len >> kPackedKeyBits; }
  EXACTILE_HOST_DEVICE constexpr int32_t packed_keys() const {
    return k_len & ((1 << kPackedKeyBits) - 1);
  }
};
static_assert(sizeof(TileRecord) == 16);

/// All rows and keys of sequence b, as one record. Lengths: a struct with
///   cu_seqlens_q  (batch + 1,): where the sequences' rows lie
///   cu_seqlens_k  (batch + 1,): where their keys lie; null: in pages
///   seqused_q     (batch,): rows that count, of those of cu_seqlens_q; null: all
///   seqused_k     (batch,): keys that count; null: all. Not null where keys lie in pages
template <class Lengths>
EXACTILE_HOST_DEVICE constexpr TileRecord sequence_record(const Lengths& lengths, int32_t b) {
  const auto within = [](int32_t used, int32_t size) { return max(0, min(used, size)); };
  TileRecord record{lengths.cu_seqlens_q[b], lengths.cu_seqlens_q[b + 1], b, 0};
  if (lengths.seqused_q) {
    const int32_t size = record.q_end - record.q_begin;
    record.q_end = record.q_begin + within(lengths.seqused_q[b], size);
  }
  if (!lengths.cu_seqlens_k) {
    record.k_len = max(0, lengths.seqused_k[b]);
    return record;
  }
  record.k_begin = lengths.cu_seqlens_k[b];
  record.k_len = lengths.cu_seqlens_k[b + 1] - record.k_begin;
  if (lengths.seqused_k) record.k_len = within(lengths.seqused_k[b], record.k_len);
  return record;
}

/// What one step of a worker computes: a TileRecord for one head (one kv head when the query heads
/// of a group share the tile).
struct WorkTile {
  TileRecord rows;
  int32_t head;

  /// Tokens in this tile when a full tile has `tile_tokens` of them; <= 0: nothing to do.
  EXACTILE_HOST_DEVICE constexpr int32_t num_tokens(int32_t tile_tokens) const {
    return rows.is_packed() ? rows.packed_tokens() : min(tile_tokens, rows.q_end - rows.q_begin);
  }
};

/// Query tiles of one sequence. This is the one function that counts tiles: host planner, device
/// planner, schedulers and tests all call it.
EXACTILE_HOST_DEVICE constexpr int32_t num_m_blocks(int32_t len_q, int32_t tile_tokens) {
  return ceil_div(len_q, tile_tokens);
}

/// A pure, trivially copyable map from a linear index to a tile. Duties:
///   1. `num_tiles()` is the number of indices; `tile(i)` is defined for 0 <= i < num_tiles().
///   2. Every tile with work is given by exactly one index.
///   3. Any other index gives a tile with `num_tokens() <= 0`.
///   4. It reads memory only through pointers in its own fields, and writes none.
///   5. It depends on i alone: not on the caller, the order of calls or the hardware.
template <class Order>
concept TileOrder = __is_trivially_copyable(Order) && requires(const Order order, int32_t index) {
  { order.num_tiles() } -> SameAs<int32_t>;
  { order.tile(index) } -> SameAs<WorkTile>;
};

/// How one work-group walks the indices of an order. Duties:
///   1. `Params` is trivially copyable; the launch fills it once for all work-groups.
///   2. `num_work_groups(params, workers)` says how many to launch on a device that runs `workers`
///      at a time.
///   3. `Scheduler(params, work_group)` starts the walk of one of them.
///   4. While `is_valid()`, `tile()` has work, and `advance()` steps on. All work-groups together
///      see every tile with work exactly once.
///   5. Which work-group computes a tile, and when, never changes the tile's result.
/// Where a work-group is many threads, one of them walks and hands each tile to the others: a walk
/// may take its next index from a counter.
template <class Scheduler>
concept TileScheduler =
    __is_trivially_copyable(typename Scheduler::Params) &&
    requires(Scheduler walk, const Scheduler at, const typename Scheduler::Params params,
             int32_t work_group, int32_t workers) {
      Scheduler(params, work_group);
      { Scheduler::num_work_groups(params, workers) } -> SameAs<int32_t>;
      { at.is_valid() } -> SameAs<bool>;
      { at.tile() } -> SameAs<WorkTile>;
      walk.advance();
    };

}  // namespace exactile
