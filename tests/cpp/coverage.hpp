// tests/cpp/coverage.hpp - walks every work-group of a schedule and says whether each tile of a
// small batch was seen exactly once. No standard header, so that it also runs at compile time.
#pragma once

#include <exactile/scheduler.hpp>

namespace exactile::test {

inline constexpr int32_t kMaxBatch = 3;
inline constexpr int32_t kMaxTiles = 64;  // of all heads, padding of the grid included

/// A batch and how it is cut into tiles.
struct Shape {
  int32_t batch = 0;
  int32_t len_q[kMaxBatch] = {};
  int32_t len_k[kMaxBatch] = {};
  int32_t num_heads = 1;    ///< kv heads with GQA packing
  int32_t tile_tokens = 1;  ///< block_m / group with GQA packing
  int32_t block_n = 1;
  Mask mask = {};
};

/// cu_seqlens of a Shape.
struct CuSeqlens {
  int32_t q[kMaxBatch + 1] = {};
  int32_t k[kMaxBatch + 1] = {};

  constexpr explicit CuSeqlens(const Shape& shape) {
    for (int32_t b = 0; b < shape.batch; ++b) {
      q[b + 1] = q[b] + shape.len_q[b];
      k[b + 1] = k[b] + shape.len_k[b];
    }
  }
};

/// Counts how often each tile is seen. Errors are texts, nullptr is success.
class Tally {
 public:
  /// Tiles are enumerated by plain loops over tokens, not by the function under test.
  constexpr Tally(const Shape& shape, const CuSeqlens& cu) : shape_(shape), cu_(cu) {
    for (int32_t b = 0; b < shape.batch; ++b) {
      first_record_[b] = num_records_;
      for (int64_t token = 0; token < shape.len_q[b]; token += shape.tile_tokens) ++num_records_;
    }
  }

  constexpr int32_t num_tiles() const { return num_records_ * shape_.num_heads; }

  constexpr const char* add(const WorkTile& tile) {
    const TileRecord& rows = tile.rows;
    int32_t b = 0;
    while (b < shape_.batch && !(cu_.q[b] <= rows.q_begin && rows.q_begin < cu_.q[b + 1])) ++b;
    if (b == shape_.batch) return "q_begin is not in any sequence";
    if (rows.q_end != cu_.q[b + 1]) return "q_end is not the end of the sequence";
    if (rows.k_begin != cu_.k[b]) return "k_begin is not the sequence's";
    if (rows.k_len != shape_.len_k[b]) return "k_len is not the sequence's";
    const int32_t token = rows.q_begin - cu_.q[b];
    if (token % shape_.tile_tokens != 0) return "q_begin is not the first row of a tile";
    const int32_t rest = shape_.len_q[b] - token;
    const int32_t tokens = rest < shape_.tile_tokens ? rest : shape_.tile_tokens;
    if (tile.num_tokens(shape_.tile_tokens) != tokens) return "num_tokens is wrong";
    if (tile.head < 0 || tile.head >= shape_.num_heads) return "no such head";
    const int32_t record = first_record_[b] + token / shape_.tile_tokens;
    if (seen_[record * shape_.num_heads + tile.head]++ != 0) return "a tile was seen twice";
    return nullptr;
  }

  constexpr const char* missing() const {
    for (int32_t i = 0; i < num_tiles(); ++i) {
      if (seen_[i] == 0) return "a tile was not seen";
    }
    return nullptr;
  }

 private:
  const Shape& shape_;
  const CuSeqlens& cu_;
  int32_t num_records_ = 0;
  int32_t first_record_[kMaxBatch] = {};
  int32_t seen_[kMaxTiles] = {};
};

/// Starts every work-group, then lets each take one step in turn until none is valid.
template <TileScheduler Scheduler>
constexpr const char* walk(const typename Scheduler::Params& params, int32_t num_work_groups,
                           Tally& tally) {
  if (num_work_groups > kMaxTiles) return "more work-groups than this test holds";
  Scheduler* walks[kMaxTiles] = {};
  for (int32_t i = 0; i < num_work_groups; ++i) walks[i] = new Scheduler(params, i);
  const char* error = nullptr;
  for (bool any_valid = true; any_valid && !error;) {
    any_valid = false;
    for (int32_t i = 0; i < num_work_groups && !error; ++i) {
      if (!walks[i]->is_valid()) continue;
      any_valid = true;
      error = tally.add(walks[i]->tile());
      walks[i]->advance();
    }
  }
  for (int32_t i = 0; i < num_work_groups; ++i) delete walks[i];
  return error ? error : tally.missing();
}

/// nullptr when Individual covers the shape exactly once.
constexpr const char* individual_error(const Shape& shape) {
  const CuSeqlens cu(shape);
  int32_t max_m_blocks = 0;
  for (int32_t b = 0; b < shape.batch; ++b) {
    max_m_blocks = max(max_m_blocks, num_m_blocks(shape.len_q[b], shape.tile_tokens));
  }
  const PaddedGrid grid{.cu_seqlens_q = cu.q,
                        .cu_seqlens_k = cu.k,
                        .batch = shape.batch,
                        .num_heads = shape.num_heads,
                        .max_m_blocks = max_m_blocks,
                        .tile_tokens = shape.tile_tokens};
  const int32_t launched = Individual::num_work_groups(grid, 1);
  if (launched != max_m_blocks * shape.num_heads * shape.batch) return "the grid is not padded";
  Tally tally(shape, cu);
  return walk<Individual>(grid, launched, tally);
}

/// nullptr when both policies of the compact list cover the shape exactly once, the persistent one
/// with 1 .. max_workers workers.
constexpr const char* valid_only_error(const Shape& shape, ListOrder order, int32_t max_workers) {
  const CuSeqlens cu(shape);
  const TileListSpec spec{.cu_seqlens_q = cu.q,
                          .cu_seqlens_k = cu.k,
                          .batch = shape.batch,
                          .tile_tokens = shape.tile_tokens,
                          .block_n = shape.block_n,
                          .mask = shape.mask};
  const auto num_records = static_cast<int32_t>(count_tiles(spec));
  Tally tally(shape, cu);
  if (num_records * shape.num_heads != tally.num_tiles()) return "count_tiles is wrong";
  auto* const records = new TileRecord[num_records];
  if (order == ListOrder::kNatural) {
    write_tiles(spec, records);
  } else {
    const SortScratch scratch{.natural = new TileRecord[num_records],
                              .cost = new int32_t[num_records],
                              .start = new int32_t[kMaxCost + 1]};
    write_sorted_tiles(spec, order, records, scratch);
    delete[] scratch.natural;
    delete[] scratch.cost;
    delete[] scratch.start;
  }
  const CompactList list{.records = records,
                         .num_records = num_records,
                         .num_heads = shape.num_heads,
                         .head_major = order == ListOrder::kHeadMajor};
  const int32_t launched = ValidOnlyIndividual::num_work_groups(list, 1);
  const char* error = launched == tally.num_tiles()
                          ? walk<ValidOnlyIndividual>(list, launched, tally)
                          : "launched is not the number of tiles";
  for (int32_t workers = 1; workers <= max_workers && !error; ++workers) {
    int32_t counter = 0;
    const CountedList params(list, &counter, min(workers, launched));
    if (ValidOnlyPersistent::num_work_groups(params, workers) != params.work_groups) {
      error = "launched is not what the list says";
    }
    // The second launch is of the same Params, as only the first resets the counter.
    for (int32_t launch = 0; launch < 2 && !error; ++launch) {
      Tally again(shape, cu);
      error = walk<ValidOnlyPersistent>(params, params.work_groups, again);
      if (!error && counter != 0) error = "the counter is not 0 after the launch";
    }
  }
  delete[] records;
  return error;
}

}  // namespace exactile::test
