// exactile/sycl/tile.hpp - what every SYCL kernel does around its mainloop: the walk of a
// work-group through its tiles, and where the rows of a tile lie. Device code.
#pragma once

#include <exactile/scheduler/concepts.hpp>
#include <exactile/sycl/params.hpp>
#include <sycl/sycl.hpp>

namespace exactile::sycl {

namespace ext = ::sycl::ext;  // the vendor's macros say sycl::ext, which in here is this

inline constexpr float kInfinity = __builtin_inff();

/// Where the rows of a tile lie. Row r is token r / heads, head r % heads: with GQA packing the
/// query heads of one token are neighbours, without it heads is 1.
struct TileRows {
  TileRecord record;
  int32_t tokens;
  int32_t heads;
  int32_t first_head;  ///< query head of row 0
  int32_t kv_head;

  EXACTILE_HOST_DEVICE TileRows(const PrefillParams& params, const WorkTile& tile)
      : record(tile.rows),
        tokens(tile.num_tokens(params.tile_tokens)),
        heads(params.tile_heads),
        first_head(tile.head * params.tile_heads),
        kv_head(first_head / params.group) {}

  EXACTILE_HOST_DEVICE int32_t rows() const { return tokens * heads; }
  EXACTILE_HOST_DEVICE int32_t token(int row) const { return record.q_begin + row / heads; }
  EXACTILE_HOST_DEVICE int32_t head(int row) const { return first_head + row % heads; }
  /// Rows from this one's token to the end of its sequence, as Mask counts them.
  EXACTILE_HOST_DEVICE int32_t rows_to_end(int row) const { return record.q_end - token(row); }
  template <class Pointer>
  EXACTILE_HOST_DEVICE int64_t offset(const Tensor<Pointer>& tensor, int row) const {
    return token(row) * tensor.token_stride + head(row) * tensor.head_stride;
  }
  /// Of the first key of the sequence.
  EXACTILE_HOST_DEVICE int64_t key_offset(const Tensor<const void*>& tensor) const {
    return record.k_begin * tensor.token_stride + kv_head * tensor.head_stride;
  }
};

/// Lies in work-group local memory: work-item 0 walks the scheduler, because a walk may take its
/// next index from a counter, and all work-items see the tile. Barriers between are the kernel's.
template <TileScheduler Scheduler>
struct TileFeed {
  WorkTile tile;
  bool valid;

  EXACTILE_HOST_DEVICE void start(const typename Scheduler::Params& schedule, int32_t work_group) {
    publish(*new (walk_) Scheduler(schedule, work_group));
  }
  EXACTILE_HOST_DEVICE void advance() {
    auto& walk = *reinterpret_cast<Scheduler*>(walk_);
    walk.advance();
    publish(walk);
  }

 private:
  EXACTILE_HOST_DEVICE void publish(const Scheduler& walk) {
    valid = walk.is_valid();
    if (valid) tile = walk.tile();
  }

  alignas(Scheduler) unsigned char walk_[sizeof(Scheduler)];
};

}  // namespace exactile::sycl
