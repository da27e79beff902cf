// exactile/scheduler/individual.hpp - the padded grid: the baseline everything is compared with.
#pragma once

#include <exactile/scheduler/concepts.hpp>

namespace exactile {

/// Order of the padded grid: as many m_blocks for every sequence as the longest one has,
/// m_block fastest, then head, then batch.
struct PaddedGrid {
  const int32_t* cu_seqlens_q;  ///< (batch + 1,)
  const int32_t* cu_seqlens_k;  ///< (batch + 1,)
  int32_t batch;
  int32_t num_heads;
  int32_t max_m_blocks;                ///< num_m_blocks() of the longest sequence
  int32_t tile_tokens;                 ///< tokens in a full tile
  const int32_t* seqused_q = nullptr;  ///< of sequence_record(), as cu_seqlens
  const int32_t* seqused_k = nullptr;

  EXACTILE_HOST_DEVICE constexpr int32_t num_tiles() const {
    return max_m_blocks * num_heads * batch;
  }

  EXACTILE_HOST_DEVICE constexpr WorkTile tile(int32_t index) const {
    const int32_t m_block = index % max_m_blocks;
    const int32_t head = index / max_m_blocks % num_heads;
    const int32_t sequence = index / max_m_blocks / num_heads;
    TileRecord rows = sequence_record(*this, sequence);
    // Past the sequence's own m_blocks q_begin is set to q_end: an empty tile (and no overflow).
    const bool exists = m_block < num_m_blocks(rows.q_end - rows.q_begin, tile_tokens);
    rows.q_begin = exists ? rows.q_begin + m_block * tile_tokens : rows.q_end;
    return {rows, head};
  }
};
static_assert(TileOrder<PaddedGrid>);

/// One work-group per tile of the padded grid; those past their sequence's end return at once.
class Individual {
 public:
  using Params = PaddedGrid;

  EXACTILE_HOST_DEVICE constexpr Individual(const Params& grid, int32_t work_group)
      : tile_(grid.tile(work_group)), valid_(tile_.num_tokens(grid.tile_tokens) > 0) {}

  EXACTILE_HOST_DEVICE static constexpr int32_t num_work_groups(const Params& grid,
                                                                int32_t /*workers*/) {
    return grid.num_tiles();
  }
  EXACTILE_HOST_DEVICE constexpr bool is_valid() const { return valid_; }
  EXACTILE_HOST_DEVICE constexpr WorkTile tile() const { return tile_; }
  EXACTILE_HOST_DEVICE constexpr void advance() { valid_ = false; }

 private:
  WorkTile tile_;
  bool valid_;
};
static_assert(TileScheduler<Individual>);

}  // namespace exactile
