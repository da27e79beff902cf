// exactile/scheduler/tile_list.hpp - the compact list: one record per tile that exists.
//
// The host calls count_tiles(), allocates, and calls write_tiles(). No allocation and no standard
// library in here, so a kernel author can call it from any program.
#pragma once

#include <exactile/mask.hpp>
#include <exactile/scheduler/concepts.hpp>

namespace exactile {

/// Order in which the tiles of a list are handed out.
enum class ListOrder : unsigned char {
  kNatural,        ///< by sequence, then m_block; the heads of a record follow one another
  kLongestFirst,   ///< most key blocks first over all tiles (LPT); the heads of a record together
  kSequenceMajor,  ///< the sequence with most keys first, its last tile first: its K/V stays in
                   ///< cache
  kHeadMajor,      ///< one head after the other, sequence-major within
};

/// Order of a compact list. `tile(i)` costs one 16-byte load.
struct CompactList {
  const TileRecord* records;  ///< (num_records,)
  int32_t num_records;        ///< or their upper bound, if `planned` is given
  int32_t num_heads;
  bool head_major;                   ///< heads outermost (kHeadMajor) or innermost
  const int32_t* planned = nullptr;  ///< written by a planner on the device: number of records

  /// What to launch for: known on the host, also where a device wrote the list.
  EXACTILE_HOST_DEVICE constexpr int32_t max_tiles() const { return num_records * num_heads; }

  EXACTILE_HOST_DEVICE constexpr int32_t num_tiles() const {
    return (planned ? *planned : num_records) * num_heads;
  }

  EXACTILE_HOST_DEVICE constexpr WorkTile tile(int32_t index) const {
    const int32_t inner = !head_major ? num_heads : planned ? *planned : num_records;
    const int32_t outer_index = index / inner;
    const int32_t inner_index = index - outer_index * inner;
    return {records[head_major ? inner_index : outer_index],
            head_major ? outer_index : inner_index};
  }
};
static_assert(TileOrder<CompactList>);

/// What the list is made from.
struct TileListSpec {
  const int32_t* cu_seqlens_q;  ///< (batch + 1,)
  const int32_t* cu_seqlens_k;  ///< (batch + 1,)
  int32_t batch;
  int32_t tile_tokens;  ///< tokens in a full tile (kBlockM, or kBlockM / group with GQA packing)
  int32_t block_n;      ///< keys in a block: the unit of a tile's cost
  Mask mask;
  /// Runs of sequences with no more queries and keys than this share tiles; 0: none does. At most
  /// kMaxPackedLen.
  int32_t packed_len = 0;
  const int32_t* seqused_q = nullptr;  ///< of sequence_record(), as cu_seqlens; not with packed_len
  const int32_t* seqused_k = nullptr;
};

/// A packed tile has at most so many tokens, so their sequences' keys can be counted.
inline constexpr int32_t kMaxPackedLen = (1 << TileRecord::kPackedKeyBits / 2) - 1;

EXACTILE_HOST_DEVICE constexpr bool is_packed_sequence(const TileListSpec& spec, int32_t b) {
  const int32_t len_q = spec.cu_seqlens_q[b + 1] - spec.cu_seqlens_q[b];
  const int32_t len_k = spec.cu_seqlens_k[b + 1] - spec.cu_seqlens_k[b];
  return 0 < len_q && max(len_q, len_k) <= spec.packed_len;
}

/// Calls visit(record) for the tiles of the run of packed sequences from `first` on; returns the
/// sequence after it. Tiles hold tile_tokens tokens but for the last, across sequences; one
/// that lies within a sequence is an ordinary record.
template <class Visit>
EXACTILE_HOST_DEVICE constexpr int32_t for_each_packed_tile(const TileListSpec& spec, int32_t first,
                                                            Visit visit) {
  const int32_t *const q = spec.cu_seqlens_q, *const k = spec.cu_seqlens_k;
  int32_t end = first;
  while (end < spec.batch && is_packed_sequence(spec, end)) ++end;
  for (int32_t token = q[first], tokens = 0; token < q[end]; token += tokens) {
    tokens = min(spec.tile_tokens, q[end] - token);
    while (q[first + 1] <= token) ++first;
    int32_t last = first;
    while (q[last + 1] < token + tokens) ++last;
    if (first == last) {
      visit(TileRecord{token, q[first + 1], k[first], k[first + 1] - k[first]});
    } else {
      visit(TileRecord::packed(token, first, k[first], tokens, k[last + 1] - k[first]));
    }
  }
  return end;
}

/// Keys that some row of a tile sees.
EXACTILE_HOST_DEVICE constexpr KeyRange visited_keys(const TileListSpec& spec,
                                                     const TileRecord& tile) {
  if (tile.is_packed()) return {0, tile.packed_keys()};
  const int32_t first = tile.q_end - tile.q_begin;
  const int32_t last = max(1, first - spec.tile_tokens + 1);
  return spec.mask.any_visible(first, last, tile.k_len);
}

EXACTILE_HOST_DEVICE constexpr int32_t num_n_blocks(const TileListSpec& spec, KeyRange keys) {
  const BlockRange blocks = blocks_with(keys, spec.block_n);
  return blocks.end - blocks.begin;
}

/// Key blocks that a tile visits: its cost.
EXACTILE_HOST_DEVICE constexpr int32_t num_n_blocks(const TileListSpec& spec,
                                                    const TileRecord& tile) {
  return num_n_blocks(spec, visited_keys(spec, tile));
}

/// Calls visit(record) for every tile in natural order.
template <class Visit>
EXACTILE_HOST_DEVICE constexpr void for_each_tile(const TileListSpec& spec, Visit visit) {
  for (int32_t b = 0; b < spec.batch; ++b) {
    if (spec.packed_len > 0 && is_packed_sequence(spec, b)) {
      b = for_each_packed_tile(spec, b, visit) - 1;
      continue;
    }
    const TileRecord all = sequence_record(spec, b);
    const int32_t m_blocks = num_m_blocks(all.q_end - all.q_begin, spec.tile_tokens);
    for (int32_t m = 0; m < m_blocks; ++m) {
      visit(TileRecord{all.q_begin + m * spec.tile_tokens, all.q_end, all.k_begin, all.k_len});
    }
  }
}

/// Number of records of the list. Times the heads it may pass what a launch can take.
EXACTILE_HOST_DEVICE constexpr int64_t count_tiles(const TileListSpec& spec) {
  int64_t tiles = 0;
  if (spec.packed_len > 0) {
    for_each_tile(spec, [&tiles](const TileRecord&) { ++tiles; });
    return tiles;
  }
  for (int32_t b = 0; b < spec.batch; ++b) {
    const TileRecord all = sequence_record(spec, b);
    tiles += num_m_blocks(all.q_end - all.q_begin, spec.tile_tokens);
  }
  return tiles;
}

EXACTILE_HOST_DEVICE constexpr void write_tiles(const TileListSpec& spec, TileRecord* records) {
  for_each_tile(spec, [&records](const TileRecord& tile) { *records++ = tile; });
}

/// Costs are distinguished up to this many key blocks; a tile of more counts as one of this many.
inline constexpr int32_t kMaxCost = 65535;

/// What a tile is sorted by: the key blocks it visits or, sequence by sequence, those that the last
/// row of its sequence does, so that all tiles of a sequence are alike.
EXACTILE_HOST_DEVICE constexpr int32_t sort_cost(const TileListSpec& spec, const TileRecord& tile,
                                                 ListOrder order) {
  if (order == ListOrder::kLongestFirst || tile.is_packed()) return num_n_blocks(spec, tile);
  return num_n_blocks(spec, spec.mask.visible(1, tile.k_len));
}

/// Working memory of write_sorted_tiles().
struct SortScratch {
  TileRecord* natural;  ///< (num_records,)
  int32_t* cost;        ///< (num_records,)
  int32_t* start;       ///< (kMaxCost + 1,)
};

/// The list with the costliest tiles first (a counting sort, linear in tiles). Equal costs keep
/// their natural order if that is kLongestFirst; else they are reversed, since under a causal mask
/// a sequence's last tile is its longest. The sequences are walked once: a mispredicted branch for
/// each is most of the time.
EXACTILE_HOST_DEVICE constexpr void write_sorted_tiles(const TileListSpec& spec, ListOrder order,
                                                       TileRecord* records, SortScratch scratch) {
  int32_t costs = 0;  // of start in use: the number of tiles, then their first position
  int64_t n = 0;
  for_each_tile(spec, [&](const TileRecord& tile) {
    const int32_t c = min(sort_cost(spec, tile, order), kMaxCost);
    while (costs <= c) scratch.start[costs++] = 0;
    ++scratch.start[c];
    scratch.natural[n] = tile;
    scratch.cost[n++] = c;
  });
  int32_t position = 0;
  for (int32_t c = costs - 1; c >= 0; --c) {
    const int32_t tiles = scratch.start[c];
    scratch.start[c] = position;
    position += tiles;
  }
  const bool reversed = order != ListOrder::kLongestFirst;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t i = reversed ? n - 1 - j : j;
    records[scratch.start[scratch.cost[i]]++] = scratch.natural[i];
  }
}

}  // namespace exactile
