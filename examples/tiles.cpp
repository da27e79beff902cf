// tiles.cpp
#include <cstdio>
#include <exactile/scheduler/valid_only.hpp>
#include <vector>

int main() {
  const int cu_seqlens[] = {0, 700, 734, 768, 768, 1068};
  const exactile::TileListSpec spec{.cu_seqlens_q = cu_seqlens,
                                    .cu_seqlens_k = cu_seqlens,
                                    .batch = 5,
                                    .tile_tokens = 128,
                                    .block_n = 64,
                                    .mask = {.left = -1, .right = 0}};
  std::vector<exactile::TileRecord> records(exactile::count_tiles(spec));
  exactile::write_tiles(spec, records.data());
  const exactile::CompactList list{.records = records.data(),
                                   .num_records = static_cast<int>(records.size()),
                                   .num_heads = 1,
                                   .head_major = false};

  using Policy = exactile::ValidOnlyIndividual;
  for (int group = 0; group < Policy::num_work_groups(list, 2); ++group) {
    for (Policy walk(list, group); walk.is_valid(); walk.advance()) {
      const auto tile = walk.tile();
      std::printf("work-group %2d: rows %4d to %4d, %d key blocks\n", group, tile.rows.q_begin,
                  tile.rows.q_begin + tile.num_tokens(128), num_n_blocks(spec, tile.rows));
    }
  }
}
