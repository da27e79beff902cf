// kernel.cu - the same grouped GEMM as a CUDA kernel. Compiled, not run.
//
// A work-group is many threads. One of them walks, because a walk may take its next index from a
// counter, and hands each tile to the others.
#include <exactile/scheduler.hpp>

#include "kernel.hpp"
#include "round_robin.hpp"

/// One element of C per thread.
template <exactile::TileScheduler Scheduler>
__global__ void __launch_bounds__(kBlockM* kBlockN)
    grouped_gemm_cuda(GemmParams params, typename Scheduler::Params schedule) {
  __shared__ exactile::WorkTile tile;
  __shared__ bool valid;
  __shared__ alignas(Scheduler) unsigned char storage[sizeof(Scheduler)];
  auto& walk = reinterpret_cast<Scheduler&>(storage);
  const bool walks = threadIdx.x == 0;
  if (walks) new (storage) Scheduler(schedule, static_cast<int>(blockIdx.x));
  while (true) {
    if (walks) {
      valid = walk.is_valid();
      if (valid) tile = walk.tile();
    }
    __syncthreads();
    if (!valid) return;
    const int row = tile.rows.q_begin + static_cast<int>(threadIdx.x) / kBlockN;
    const int column = tile.head * kBlockN + static_cast<int>(threadIdx.x) % kBlockN;
    if (row < tile.rows.q_end && column < params.columns) {
      const float* const a = params.a + std::int64_t{row} * params.depth;
      const float* const b =
          params.b + std::int64_t{tile.rows.k_begin} * params.depth * params.columns + column;
      float sum = 0;
      for (int k = 0; k < params.depth; ++k) sum += a[k] * b[std::int64_t{k} * params.columns];
      params.c[std::int64_t{row} * params.columns + column] += sum;
    }
    __syncthreads();
    if (walks) walk.advance();
  }
}

template __global__ void grouped_gemm_cuda<exactile::Individual>(GemmParams, exactile::PaddedGrid);
template __global__ void grouped_gemm_cuda<exactile::ValidOnlyIndividual>(GemmParams,
                                                                          exactile::CompactList);
template __global__ void grouped_gemm_cuda<exactile::ValidOnlyPersistent>(
    GemmParams, exactile::ValidOnlyPersistent::Params);
template __global__ void grouped_gemm_cuda<RoundRobin>(GemmParams, RoundRobin::Params);
