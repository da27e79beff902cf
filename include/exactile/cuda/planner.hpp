// exactile/cuda/planner.hpp - the tile list, written on the device from lengths that lie there: no
// host sync, and valid when a CUDA graph replays it with other lengths.
//
// The list holds the records of write_tiles(). A thread finds its record by bisection of the tiles
// before each sequence, so one long sequence and many short ones take as long. Longest first is a
// counting sort by keys: the blocks of one cluster count their tiles by bin, exchange the counts
// through distributed shared memory, and place; tiles of one bin come in any order.
#pragma once

#include <exactile/cuda/planner_params.hpp>
#include <exactile/cuda/ptx.hpp>

namespace exactile::cuda {

namespace planner {

EXACTILE_DEVICE int32_t thread() { return static_cast<int32_t>(threadIdx.x); }

/// Sum of the values of lower threads; `total` of all. Every thread calls it.
EXACTILE_DEVICE int32_t sum_before(int32_t value, int32_t (&partial)[32], int32_t& total) {
  constexpr int32_t kWarps = kPlannerThreads / 32;
  const int32_t lane = thread() % 32, warp = thread() / 32;
  const auto sum_to_lane = [lane](int32_t sum) {
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const int32_t lower = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += lower;
    }
    return sum;
  };
  const int32_t sum = sum_to_lane(value);
  if (lane == 31) partial[warp] = sum;
  __syncthreads();
  // Every warp adds the warps for itself.
  const int32_t of_warps = sum_to_lane(lane < kWarps ? partial[lane] : 0);
  total = __shfl_sync(~0u, of_warps, 31);
  const int32_t warps_before = __shfl_sync(~0u, of_warps, (warp + 31) % 32);
  return sum - value + (warp > 0 ? warps_before : 0);
}

/// Records that a thread works on together, and their bins; -1: none.
struct Tiles {
  TileRecord record[kPlannerPerThread];
  int32_t bin[kPlannerPerThread];
};

/// Some sequences, at most kPlannerRound. Finds their records by the place in the natural order.
class Chunk {
 public:
  EXACTILE_DEVICE Chunk(const PlannerParams& params, SharedStorage& shared)
      : params_(params), shared_(shared) {}

  /// Takes the sequences from `begin`, before `end`.
  EXACTILE_DEVICE void load(int32_t begin, int32_t end) {
    begin_ = begin;
    last_ = min(end - begin, kPlannerRound) - 1;
    int32_t tiles[kPlannerPerThread], sum = 0;
#pragma unroll
    for (int32_t j = 0; j < kPlannerPerThread; ++j) {
      const int32_t b = begin + thread() * kPlannerPerThread + j;
      int32_t len = 0;
      if (b < end) {
        const TileRecord all = planned_sequence(params_, b);
        len = all.q_end - all.q_begin;
      }
      tiles[j] = num_m_blocks(max(0, len), params_.spec.tile_tokens);
      sum += tiles[j];
    }
    int32_t position = sum_before(sum, shared_.partial, total_);
#pragma unroll
    for (int32_t j = 0; j < kPlannerPerThread; ++j) {
      shared_.before[thread() * kPlannerPerThread + j] = position;
      position += tiles[j];
    }
    __syncthreads();
  }

  EXACTILE_DEVICE int32_t total() const { return total_; }

  /// Records index, index + kPlannerThreads, ... with their bins. total() > 0.
  EXACTILE_DEVICE void find(int32_t index, Tiles& tiles) const {
    int32_t b[kPlannerPerThread], at[kPlannerPerThread];
#pragma unroll
    for (int32_t j = 0; j < kPlannerPerThread; ++j) {
      b[j] = 0;
      at[j] = min(index + j * kPlannerThreads, total_ - 1);
    }
    // The last sequence with before <= at; empty ones before it share its value.
    for (int32_t step = last_ > 0 ? 1 << (31 - __clz(last_)) : 0; step > 0; step /= 2) {
#pragma unroll
      for (int32_t j = 0; j < kPlannerPerThread; ++j) {
        if (b[j] + step <= last_ && shared_.before[b[j] + step] <= at[j]) b[j] += step;
      }
    }
#pragma unroll
    for (int32_t j = 0; j < kPlannerPerThread; ++j) {
      const int32_t m_block = at[j] - shared_.before[b[j]];
      tiles.record[j] = planned_sequence(params_, begin_ + b[j]);
      tiles.record[j].q_begin += m_block * params_.spec.tile_tokens;
    }
#pragma unroll
    for (int32_t j = 0; j < kPlannerPerThread; ++j) {
      const int32_t bin = planner_bin(params_.spec, tiles.record[j]);
      tiles.bin[j] = index + j * kPlannerThreads < total_ ? bin : -1;
    }
  }

 private:
  const PlannerParams& params_;
  SharedStorage& shared_;
  int32_t begin_;  // sequence
  int32_t last_;   // of this chunk
  int32_t total_;
};

/// Takes a place in a table by bin: returns what the table had before. Lanes of a warp that
/// follow one another in the same bin take theirs together; a bin of -1 takes none.
EXACTILE_DEVICE int32_t take_place(int32_t* table, int32_t bin) {
  const int32_t lane = thread() % 32;
  const int32_t left = __shfl_up_sync(~0u, bin, 1);
  const unsigned heads = __ballot_sync(~0u, lane == 0 || left != bin);
  const int32_t head = 31 - __clz(heads & (~0u >> (31 - lane)));
  const unsigned later = heads & (~1u << lane);
  int32_t first = 0;
  if (lane == head && bin >= 0) {
    const int32_t end = later ? __ffs(later) - 1 : 32;
    first = atomicAdd(table + bin, end - lane);
  }
  return __shfl_sync(~0u, first, head) + lane - head;
}

/// `word` of a block of the cluster, once exchange() is over.
EXACTILE_DEVICE int32_t word_of_block(const int32_t& word, int32_t block) {
  if (gridDim.x == 1) return word;
  return ptx::load_cluster_shared(ptx::shared_address(&word), block);
}

/// Sum of a word over the blocks, and over those before this one.
struct ClusterSum {
  int32_t all = 0, before = 0;

  EXACTILE_DEVICE explicit ClusterSum(const int32_t& word) {
#pragma unroll
    for (int32_t i = 0; i < kPlannerMaxBlocks; ++i) {
      if (i >= static_cast<int32_t>(gridDim.x)) break;
      const int32_t n = word_of_block(word, i);
      all += n;
      before += i < static_cast<int32_t>(blockIdx.x) ? n : 0;
    }
  }
};

/// Makes first positions from the counts of all blocks; returns the tiles of the blocks before.
EXACTILE_DEVICE int32_t exchange(const PlannerParams& params, int32_t tiles_here,
                                 SharedStorage& shared) {
  if (thread() == 0) shared.total = tiles_here;
  __syncthreads();
  if (gridDim.x > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  const bool has_bin = thread() < kPlannerBins;
  const ClusterSum tiles(shared.total), of_bin(shared.count[has_bin ? thread() : 0]);
  if (gridDim.x > 1) ptx::cluster_arrive();  // a block may leave when all have read what it counted
  if (blockIdx.x == 0 && thread() == 0) {
    *params.num_records = min(tiles.all, params.max_records);
    if (params.counter) *params.counter = 0;
  }
  int32_t total;
  const int32_t before = sum_before(has_bin ? of_bin.all : 0, shared.partial, total);
  if (has_bin) shared.next[thread()] = before + of_bin.before;
  __syncthreads();
  return tiles.before;
}

}  // namespace planner

/// Launch: planner_blocks() blocks of kPlannerThreads as one cluster.
__global__ void __launch_bounds__(kPlannerThreads)
    plan_tiles(const __grid_constant__ PlannerParams params) {
  using namespace planner;
  __shared__ SharedStorage shared;
  ptx::wait_for_previous_grids();  // who writes the lengths, and who still reads the list before
  ptx::grid_dependency_launch();   // the attention kernel may come up; it waits for this one's end

  if (thread() < kPlannerBins) shared.count[thread()] = 0;
  const auto blocks = static_cast<int32_t>(gridDim.x), block = static_cast<int32_t>(blockIdx.x);
  const int32_t of_block = ceil_div(params.spec.batch, blocks);
  const int32_t begin = min(block * of_block, params.spec.batch);
  const int32_t end = min(begin + of_block, params.spec.batch);
  const bool sorts = params.order != ListOrder::kNatural;
  Chunk chunk(params, shared);
  Tiles tiles;
  int32_t natural = 0;  // place in the natural order
  bool loaded = false;  // the chunk, and all tiles of it, from the pass before
#pragma unroll 1
  for (int32_t pass = 0; pass < 2; ++pass) {
    const bool places = pass == 1;
    int32_t rounds = 0;
#pragma unroll 1
    for (int32_t first = begin; first < end; first += kPlannerRound) {
      if (!loaded) chunk.load(first, end);
#pragma unroll 1
      for (int32_t i = 0; i < chunk.total(); i += kPlannerRound, ++rounds) {
        if (!loaded) chunk.find(i + thread(), tiles);
#pragma unroll
        for (int32_t j = 0; j < kPlannerPerThread; ++j) {
          if (i + j * kPlannerThreads >= chunk.total()) break;
          const int32_t sorted = take_place(places ? shared.next : shared.count, tiles.bin[j]);
          const int32_t place = sorts ? sorted : natural + i + thread() + j * kPlannerThreads;
          if (places && tiles.bin[j] >= 0 && place < params.max_records) {
            params.records[place] = tiles.record[j];
          }
        }
      }
      natural += chunk.total();
      __syncthreads();  // the chunk's table may be written again, and counts may be read
    }
    if (places) break;
    loaded = rounds <= 1 && of_block <= kPlannerRound;
    natural = exchange(params, natural, shared);
  }
  if (gridDim.x > 1) ptx::cluster_wait();
}

}  // namespace exactile::cuda
