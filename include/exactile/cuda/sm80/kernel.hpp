// exactile/cuda/sm80/kernel.hpp - one work-group: the scheduler loop around mainloop and store.
#pragma once

#include <exactile/cuda/probe.hpp>
#include <exactile/cuda/sm80/mainloop.hpp>

namespace exactile::cuda::sm80 {

/// Lies in shared memory: thread 0 walks the scheduler, because a walk may take its next index from
/// a counter, and all threads see the tile. Barriers between are the kernel's.
template <class Traits, TileScheduler Scheduler>
struct TileFeed {
  using Params = typename Traits::Params;

  WorkTile tile;
  bool valid;
  [[no_unique_address]] typename Traits::Keys keys;

  EXACTILE_DEVICE void start(const Params& params, const typename Scheduler::Params& schedule) {
    publish(params, *new (walk_) Scheduler(schedule, static_cast<int32_t>(blockIdx.x)));
  }
  EXACTILE_DEVICE void advance(const Params& params) {
    auto& walk = *reinterpret_cast<Scheduler*>(walk_);
    walk.advance();
    publish(params, walk);
  }

 private:
  EXACTILE_DEVICE void publish(const Params& params, const Scheduler& walk) {
    valid = walk.is_valid();
    if (valid) tile = walk.tile();
    if constexpr (Traits::Keys::kSplits) {
      if (valid) keys = typename Traits::Keys(params, tile);
    }
  }

  alignas(Scheduler) unsigned char walk_[sizeof(Scheduler)];
};

/// A tile, part by part: the sequences that it holds one after the other, and of each no more rows
/// than kBlockM. Correct, but slow: sm90 computes such a tile at once.
template <class Traits>
class Parts {
 public:
  EXACTILE_DEVICE Parts(const PrefillParams& params, const WorkTile& tile)
      : params_(params),
        tile_(tile),
        packed_(Traits::kMask == MaskKind::kPacked && tile.rows.is_packed()),
        max_tokens_(Traits::kBlockM / params.tile_heads),
        end_(tile.rows.q_begin + tile.num_tokens(params.tile_tokens)) {}

  /// visit(part, whether it is the last).
  template <class Visit>
  EXACTILE_DEVICE void for_each(Visit visit) const {
    if constexpr (Traits::kMask != MaskKind::kPacked && Traits::kBlockM == kMaxBlockM) {
      return visit(TileRows(params_, tile_), true);
    }
    int32_t sequence = tile_.rows.first_sequence();  // of a tile of several
    int32_t token = tile_.rows.q_begin;
#pragma unroll 1
    do {
      TileRecord rows = tile_.rows;
      if (packed_) {
        const int32_t k_begin = params_.cu_seqlens_k[sequence];
        rows = {.q_end = params_.cu_seqlens_q[sequence + 1],
                .k_begin = k_begin,
                .k_len = params_.cu_seqlens_k[sequence + 1] - k_begin};
      }
      rows.q_begin = token;
      TileRows part(params_, {rows, tile_.head});
      part.tokens = min(min(part.tokens, max_tokens_), end_ - token);
      token += part.tokens;
      if (token == rows.q_end) ++sequence;
      visit(part, token == end_);
    } while (token < end_);
  }

 private:
  const PrefillParams& params_;
  const WorkTile tile_;
  const bool packed_;
  const int32_t max_tokens_;
  const int32_t end_;  // token
};

/// Writes O = o / row_sum and the LSE. A row that saw no key has row_sum 0: O = 0, LSE = -inf.
/// The queries of a warp's rows are read by that warp alone, so it turns its rows around in their
/// place: fragments in, whole rows out, 16 bytes at a time.
template <class Traits>
EXACTILE_DEVICE void store_tile(const PrefillParams& params, const TileRows& tile,
                                const Accumulators<Traits>& acc, uint32_t shared) {
  using Element = typename Traits::Element;
  using Rows = SharedTile<Traits::kHeadDimV>;  // (16, Dv)
  const int row0 = warp() * Traits::kWarpRows;
  const Rows rows{shared + row0 * Traits::kHeadDim * 2};
  static_assert(Traits::kHeadDimV <= Traits::kHeadDim);
  const int row_of_lane = lane() / 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = acc.row_sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const RowSum<typename Traits::Scores, ptx::Math> row_sum(
        params.scores, sum, acc.row_max[r], params.scale_log2,
        [&] { return tile.head(row0 + row_of_lane + r * 8); });
    const bool seen = row_sum.total() != 0;
    const float inverse = 1.0f / row_sum.total();
#pragma unroll
    for (int i = 0; i < Traits::kHeadDimV / 8; ++i) {
      const float low = seen ? acc.o[i][2 * r] * inverse : 0.0f;
      const float high = seen ? acc.o[i][2 * r + 1] * inverse : 0.0f;
      const auto at = rows.cursor(row_of_lane, i % 2);  // 8 rows on, chunks are permuted alike
      ptx::store_shared(at.at(0, i / 2) + r * 8 * Rows::kPitch + lane() % 4 * 4,
                        ptx::pack<Element>(low, high));
    }
    const int row = row0 + row_of_lane + r * 8;
    if (params.lse && lane() % 4 == 0 && row < tile.rows()) {
      const float lse = row_sum.lse(acc.row_max[r], params.scale_log2);
      params.lse[tile.head(row) * params.lse_head_stride + tile.token(row)] =
          seen ? lse : -kInfinity;
    }
  }
  __syncwarp();
  auto* const out = static_cast<Element*>(params.out.data);
  const int chunk0 = lane() % Rows::kGroup;
#pragma unroll
  for (int row = lane() / Rows::kGroup; row < Traits::kWarpRows; row += 32 / Rows::kGroup) {
    if (row0 + row >= tile.rows()) break;
    Element* const to = out + tile.offset(params.out, row0 + row) + chunk0 * 8;
#pragma unroll
    for (int chunk = 0; chunk < Rows::kChunks; chunk += Rows::kGroup) {
      uint32_t words[4];
      ptx::load_shared(words, rows.address(row, chunk0) + chunk * 16);
      ptx::store_global(to + chunk * 8, words);
    }
  }
}

/// Writes a part of a tile's keys as it is, to where the parts are merged.
template <class Traits>
EXACTILE_DEVICE void store_part(const typename Traits::Params& params, const SplitKeys& keys,
                                const TileRows& part, const Accumulators<Traits>& acc) {
  const PartialResults& partial = params.split.partial;
  const int64_t first = keys.row_of(part.record.q_begin, params.tile_heads);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = acc.row_sum[r];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int32_t row = warp() * Traits::kWarpRows + lane() / 4 + r * 8;
    if (row >= part.rows()) continue;
    float* const to = partial.out + (first + row) * Traits::kHeadDimV + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < Traits::kHeadDimV / 8; ++i) {
      *reinterpret_cast<float2*>(to + 8 * i) = {acc.o[i][2 * r], acc.o[i][2 * r + 1]};
    }
    if (lane() % 4 == 0) partial.rows[first + row] = {acc.row_max[r], sum};
  }
}

/// The bound of 1 keeps ptxas from spilling for the sake of a second work-group on the SM.
template <class Traits, TileScheduler Scheduler, KernelProbe Probe = NoProbe>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    prefill_kernel(const __grid_constant__ typename Traits::Params params,
                   const __grid_constant__ typename Scheduler::Params schedule) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  __shared__ TileFeed<Traits, Scheduler> feed;
  const uint32_t shared = ptx::shared_address(shared_bytes);

  Probe probe(params, thread() == 0);
  ptx::wait_for_previous_grids();  // a planner may have written the list just before
  if (thread() == 0) feed.start(params, schedule);
  __syncthreads();
  if (!feed.valid) probe.found_no_tile();
  while (feed.valid) {
    probe.mainloop_begins(feed.tile);
    const typename Traits::Keys keys = feed.keys;  // the feed is ahead when the tile is stored
    Parts<Traits>(params, feed.tile).for_each([&](const TileRows& part, bool is_last) {
      Accumulators<Traits> acc;
      Mainloop<Traits>(params, part, keys, shared).run(acc);
      __syncthreads();
      if (is_last) {
        probe.epilogue_begins();
        if (thread() == 0)
          feed.advance(params);  // to the counter and the list, while the others store
      }
      if constexpr (Traits::Keys::kSplits) {
        if (keys.is_part()) {
          store_part<Traits>(params, keys, part, acc);
        } else {
          store_tile(params, part, acc, shared);
        }
      } else {
        store_tile(params, part, acc, shared);
      }
      if (is_last) probe.tile_ends();
      __syncthreads();
    });
  }
}

}  // namespace exactile::cuda::sm80
