// kernel.hpp - the kernel: a grouped GEMM over ragged groups, written against TileScheduler.
//
// Group g owns the rows [cu_rows[g], cu_rows[g + 1]) of A and C and one weight matrix of its own:
// C[rows of g] += A[rows of g] * B[g]. A mixture-of-experts layer is this, an expert being a group.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exactile/scheduler/concepts.hpp>

inline constexpr int kBlockM = 4;  // rows of C in a tile
inline constexpr int kBlockN = 8;  // columns of C in a tile

struct GemmParams {
  const float* a;  // (total_rows, depth)
  const float* b;  // (groups, depth, columns)
  float* c;        // (total_rows, columns)
  int depth;
  int columns;
};

/// One tile. exactile's words for attention are read as: head = column tile, k_begin = group id
/// (the list is made with cu_seqlens_k = {0, 1, 2, ...}), q_end = end of the group's rows.
inline void gemm_tile(const GemmParams& params, const exactile::WorkTile& tile) {
  const int row_end = tile.rows.q_begin + tile.num_tokens(kBlockM);
  const int column_begin = tile.head * kBlockN;
  const int column_end = std::min(column_begin + kBlockN, params.columns);
  const float* const b = params.b + std::int64_t{tile.rows.k_begin} * params.depth * params.columns;
  for (int row = tile.rows.q_begin; row < row_end; ++row) {
    const float* const a_row = params.a + std::int64_t{row} * params.depth;
    float* const c_row = params.c + std::int64_t{row} * params.columns;
    for (int k = 0; k < params.depth; ++k) {
      for (int column = column_begin; column < column_end; ++column) {
        c_row[column] += a_row[k] * b[std::int64_t{k} * params.columns + column];
      }
    }
  }
}

/// What one work-group does. This loop is all that a kernel has to know about scheduling.
template <exactile::TileScheduler Scheduler>
void grouped_gemm(const GemmParams& params, const typename Scheduler::Params& schedule,
                  int work_group) {
  for (Scheduler walk(schedule, work_group); walk.is_valid(); walk.advance()) {
    gemm_tile(params, walk.tile());
  }
}
