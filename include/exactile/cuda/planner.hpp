// exactile/cuda/planner.hpp - the tile list, written on the device from cu_seqlens that lie there:
// no host sync, and right again when a CUDA graph replays it with other lengths.
//
// The list is that of write_tiles() or write_tiles_longest_first(), record for record. A thread
// finds its record by bisection of the tiles before each sequence, so one long sequence and many
// short ones take as long. Longest first is a stable counting sort by key blocks: blocks of threads
// own consecutive ranges of the natural order, count their tiles by cost, exchange the counts, and
// place.
#pragma once

#include <exactile/cuda/planner_params.hpp>
#include <exactile/cuda/ptx80.hpp>

namespace exactile::cuda {

namespace planner {

EXACTILE_DEVICE int32_t thread() { return static_cast<int32_t>(threadIdx.x); }

/// Sum of the values of lower threads; `total` of all. Every thread calls it.
EXACTILE_DEVICE int32_t sum_before(int32_t value, int32_t* partial, int32_t& total) {
  const int32_t lane = thread() % 32, warp = thread() / 32;
  int32_t sum = value;
#pragma unroll
  for (int32_t step = 1; step < 32; step *= 2) {
    const int32_t lower = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += lower;
  }
  __syncthreads();  // partial may still be read from the call before
  if (lane == 31) partial[warp] = sum;
  __syncthreads();
  int32_t of_warps = partial[lane];  // every warp adds up the 32 warps for itself
#pragma unroll
  for (int32_t step = 1; step < 32; step *= 2) {
    const int32_t lower = __shfl_up_sync(~0u, of_warps, step);
    if (lane >= step) of_warps += lower;
  }
  total = __shfl_sync(~0u, of_warps, 31);
  const int32_t warps_before = __shfl_sync(~0u, of_warps, (warp + 31) % 32);
  return sum - value + (warp > 0 ? warps_before : 0);
}

EXACTILE_DEVICE int32_t max_of_block(int32_t value, int32_t* partial) {
  const auto warp_max = [](int32_t x) {
#pragma unroll
    for (int32_t step = 16; step > 0; step /= 2) x = max(x, __shfl_xor_sync(~0u, x, step));
    return x;
  };
  const int32_t of_warp = warp_max(value);
  __syncthreads();
  partial[thread() / 32] = of_warp;
  __syncthreads();
  return warp_max(partial[thread() % 32]);
}

/// Finds records by their place in the natural order.
class Sequences {
 public:
  /// Every block counts for itself: cheaper than waiting for one that does.
  EXACTILE_DEVICE Sequences(const TileListSpec& spec, SharedStorage& shared)
      : spec_(spec),
        before_(shared.before),
        per_entry_(max(1, ceil_div(spec.batch, kPlannerEntries))),
        entries_(ceil_div(spec.batch, per_entry_)) {
    constexpr int32_t kMost = kPlannerEntries / kPlannerThreads;
    const int32_t each = ceil_div(entries_, kPlannerThreads);
    int32_t tiles[kMost], tiles_of_thread = 0, longest = 0;
#pragma unroll
    for (int32_t i = 0; i < kMost; ++i) {
      tiles[i] = 0;
      if (i < each) {  // the same for all threads
        const int32_t first = (thread() * each + i) * per_entry_;
        for (int32_t b = first; b < min(first + per_entry_, spec.batch); ++b) {
          tiles[i] += num_tiles(b);
          longest = max(longest, spec.cu_seqlens_k[b + 1] - spec.cu_seqlens_k[b]);
        }
      }
      tiles_of_thread += tiles[i];
    }
    int32_t position = sum_before(tiles_of_thread, shared.partial, total_);
#pragma unroll
    for (int32_t i = 0; i < kMost; ++i) {
      if (i < each && thread() * each + i < entries_) before_[thread() * each + i] = position;
      position += tiles[i];
    }
    max_cost_ = min(ceil_div(max_of_block(longest, shared.partial), spec.block_n), kMaxCost);
    __syncthreads();
  }

  EXACTILE_DEVICE int32_t total() const { return total_; }
  EXACTILE_DEVICE int32_t max_cost() const { return max_cost_; }  ///< no tile has more

  EXACTILE_DEVICE TileRecord record(int32_t index) const {
    int32_t entry = 0;  // the last with before_ <= index; empty ones before it share its value
    for (int32_t step = 1 << (31 - __clz(entries_)); step > 0; step /= 2) {
      if (entry + step < entries_ && before_[entry + step] <= index) entry += step;
    }
    int32_t b = entry * per_entry_, m_block = index - before_[entry];
    for (int32_t i = 1; i < per_entry_; ++i) {
      const int32_t tiles = num_tiles(b);
      if (m_block < tiles) break;
      m_block -= tiles;
      ++b;
    }
    const int32_t k_begin = spec_.cu_seqlens_k[b];
    return {spec_.cu_seqlens_q[b] + m_block * spec_.tile_tokens, spec_.cu_seqlens_q[b + 1], k_begin,
            spec_.cu_seqlens_k[b + 1] - k_begin};
  }

 private:
  EXACTILE_DEVICE int32_t num_tiles(int32_t b) const {
    return num_m_blocks(max(0, spec_.cu_seqlens_q[b + 1] - spec_.cu_seqlens_q[b]),
                        spec_.tile_tokens);
  }

  const TileListSpec& spec_;
  int32_t* const before_;
  const int32_t per_entry_;
  const int32_t entries_;
  int32_t total_, max_cost_;
};

/// All blocks have come here and their writes to global memory are visible. The words are 0 before
/// the first and after the last wait of a launch.
class GridBarrier {
 public:
  EXACTILE_DEVICE explicit GridBarrier(int32_t* words) : words_(words) {}

  EXACTILE_DEVICE void wait() {
    arrived_ += static_cast<int32_t>(gridDim.x);
    __syncthreads();
    if (thread() == 0) {
      __threadfence();
      atomicAdd(words_, 1);
      while (*static_cast<volatile int32_t*>(words_) < arrived_) {
      }
      __threadfence();
    }
    __syncthreads();
  }

  /// The last block to leave clears the words: nobody waits any more.
  EXACTILE_DEVICE void leave() {
    if (arrived_ == 0 || thread() != 0) return;
    if (atomicAdd(words_ + 1, 1) == static_cast<int32_t>(gridDim.x) - 1) {
      words_[0] = 0;
      words_[1] = 0;
    }
  }

 private:
  int32_t* const words_;
  int32_t arrived_ = 0;
};

/// The range of the natural order that a block owns.
struct Range {
  int32_t begin, end;
};

/// A thread's record of one round, and which of the pass's costs it has (0 is the highest): -1 when
/// the pass is not about it.
struct Tile {
  TileRecord record;
  int32_t bin;
};

/// Places the tiles of costs (highest - kPlannerCosts, highest].
class SortPass {
 public:
  EXACTILE_DEVICE SortPass(const PlannerParams& params, const Sequences& sequences, Range range,
                           int32_t highest, SharedStorage& shared)
      : params_(params), sequences_(sequences), range_(range), highest_(highest), shared_(shared) {}

  /// Number of this block's tiles by cost, into shared.start.
  EXACTILE_DEVICE void count() {
    if (thread() < kPlannerCosts) shared_.start[thread()] = 0;
    __syncthreads();
    for (int32_t i = range_.begin; i < range_.end; i += kPlannerThreads) {
      tile_ = tile(i + thread());
      const unsigned alike = __match_any_sync(~0u, tile_.bin);
      if (tile_.bin >= 0 && rank(alike) == 0) atomicAdd(&shared_.start[tile_.bin], __popc(alike));
    }
    __syncthreads();
  }

  /// Turns counts into first positions. `placed`: tiles of higher costs; grows by those of this
  /// pass. `counts`: (blocks, kPlannerCosts), one slot of the scratch.
  EXACTILE_DEVICE void exchange(int32_t* counts, GridBarrier& barrier, int32_t& placed) {
    const bool has_cost = thread() < kPlannerCosts;
    int32_t all = has_cost ? shared_.start[thread()] : 0;
    int32_t of_blocks_before = 0;
    if (gridDim.x > 1) {
      const int32_t block = static_cast<int32_t>(blockIdx.x);
      volatile int32_t* const of_cost = counts + thread();
      if (has_cost) of_cost[block * kPlannerCosts] = all;
      barrier.wait();
      all = 0;
#pragma unroll 8
      for (int32_t i = 0; has_cost && i < static_cast<int32_t>(gridDim.x); ++i) {
        const int32_t n = of_cost[i * kPlannerCosts];
        all += n;
        of_blocks_before += i < block ? n : 0;
      }
    }
    int32_t total;
    next_ = placed + sum_before(all, shared_.partial, total) + of_blocks_before;
    placed += total;
  }

  /// Writes the records, equal costs in natural order: by round, warp and lane.
  EXACTILE_DEVICE void place() {
    const int32_t warp = thread() / 32;
    const bool one_round = range_.end - range_.begin <= kPlannerThreads;
    for (int32_t i = range_.begin; i < range_.end; i += kPlannerThreads) {
      if (!one_round) tile_ = tile(i + thread());
      auto* const words = reinterpret_cast<int32_t*>(shared_.tiles_of_warp);
      for (int32_t w = thread(); w < kWarps * kPlannerCosts / 2; w += kPlannerThreads) words[w] = 0;
      __syncthreads();
      const unsigned alike = __match_any_sync(~0u, tile_.bin);
      if (tile_.bin >= 0 && rank(alike) == 0) {
        shared_.tiles_of_warp[warp][tile_.bin] = static_cast<unsigned short>(__popc(alike));
      }
      __syncthreads();
      if (thread() < kPlannerCosts) {
        shared_.start[thread()] = next_;
        int32_t before = 0;
#pragma unroll
        for (int32_t w = 0; w < kWarps; ++w) {
          unsigned short& tiles = shared_.tiles_of_warp[w][thread()];
          const int32_t n = tiles;
          tiles = static_cast<unsigned short>(before);
          before += n;
        }
        next_ += before;
      }
      __syncthreads();
      if (tile_.bin >= 0) {
        params_.records[shared_.start[tile_.bin] + shared_.tiles_of_warp[warp][tile_.bin] +
                        rank(alike)] = tile_.record;
      }
      __syncthreads();
    }
  }

 private:
  EXACTILE_DEVICE Tile tile(int32_t index) const {
    if (index >= range_.end) return {.record = {}, .bin = -1};
    const TileRecord record = sequences_.record(index);
    const int32_t bin = highest_ - min(num_n_blocks(params_.spec, record), kMaxCost);
    return {.record = record, .bin = 0 <= bin && bin < kPlannerCosts ? bin : -1};
  }

  /// Lanes below this one that are alike.
  EXACTILE_DEVICE static int32_t rank(unsigned alike) {
    return __popc(alike & ((1u << thread() % 32) - 1));
  }

  const PlannerParams& params_;
  const Sequences& sequences_;
  const Range range_;
  const int32_t highest_;
  SharedStorage& shared_;
  Tile tile_{.record = {}, .bin = -1};  // of the latest round
  int32_t next_ = 0;                    // this thread's cost: position of its next tile
};

}  // namespace planner

/// Launch: planner_blocks() blocks of kPlannerThreads, cooperative if more than one.
__global__ void __launch_bounds__(kPlannerThreads)
    plan_tiles(const __grid_constant__ PlannerParams params) {
  using namespace planner;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedStorage*>(shared_bytes);
  ptx::wait_for_previous_grids();  // who writes cu_seqlens, and who still reads the list before
  ptx::grid_dependency_launch();   // the attention kernel may come up; it waits for this one's end

  const Sequences sequences(params.spec, shared);
  const int32_t num_records = min(sequences.total(), params.max_records);
  if (blockIdx.x == 0 && thread() == 0) {
    *params.num_records = num_records;
    if (params.counter) *params.counter = 0;
  }
  const auto blocks = static_cast<int32_t>(gridDim.x), block = static_cast<int32_t>(blockIdx.x);
  const int32_t rounds = ceil_div(ceil_div(num_records, blocks), kPlannerThreads);
  const int32_t of_block = rounds * kPlannerThreads;
  const Range range{.begin = min(block * of_block, num_records),
                    .end = min((block + 1) * of_block, num_records)};
  if (params.order == ListOrder::kNatural) {
    for (int32_t i = range.begin + thread(); i < range.end; i += kPlannerThreads) {
      params.records[i] = sequences.record(i);
    }
    return;
  }
  GridBarrier barrier(params.scratch);
  int32_t placed = 0, slot = 0;
  for (int32_t highest = sequences.max_cost(); placed < num_records; highest -= kPlannerCosts) {
    SortPass pass(params, sequences, range, highest, shared);
    pass.count();
    // Two slots in turn: when a block is past the next barrier, nobody reads this one any more.
    pass.exchange(params.scratch + 2 + slot * blocks * kPlannerCosts, barrier, placed);
    pass.place();
    slot ^= 1;
  }
  if (blocks > 1) barrier.leave();
}

}  // namespace exactile::cuda
