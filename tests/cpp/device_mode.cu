// tests/cpp/device_mode.cu - the headers inside a user's own .cu: the three policies, and the list
// written on the device. Compiled, not run.
#include <exactile/scheduler.hpp>

namespace exactile::test {

/// Adds up the tokens of every head. One thread per work-group: the persistent policy takes an
/// index each time that it is constructed or advanced.
template <TileScheduler Scheduler>
__global__ void count_tokens(typename Scheduler::Params schedule, int32_t tile_tokens,
                             int32_t* tokens_of_head) {
  for (Scheduler walk(schedule, static_cast<int32_t>(blockIdx.x)); walk.is_valid();
       walk.advance()) {
    const WorkTile tile = walk.tile();
    atomicAdd(tokens_of_head + tile.head, tile.num_tokens(tile_tokens));
  }
}

template __global__ void count_tokens<Individual>(PaddedGrid, int32_t, int32_t*);
template __global__ void count_tokens<ValidOnlyIndividual>(CompactList, int32_t, int32_t*);
template __global__ void count_tokens<ValidOnlyPersistent>(ValidOnlyPersistent::Params, int32_t,
                                                           int32_t*);

__global__ void write_list(TileListSpec spec, TileRecord* records, SortScratch scratch,
                           int64_t* num_records) {
  *num_records = count_tiles(spec);
  write_sorted_tiles(spec, ListOrder::kLongestFirst, records, scratch);
}

}  // namespace exactile::test
