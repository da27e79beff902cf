// exactile/sycl/portable/kernel.hpp - one work-group: the scheduler loop around mainloop and store.
#pragma once

#include <exactile/sycl/portable/mainloop.hpp>
#include <sycl/ext/oneapi/work_group_static.hpp>

namespace exactile::sycl::portable {

/// Writes O = o / row_sum and the LSE. A row that saw no key has row_sum 0: O = 0, LSE = -inf.
template <class Traits>
EXACTILE_HOST_DEVICE void store_tile(const PrefillParams& params, const TileRows& tile,
                                     const Place& place, const Accumulators<Traits>& acc) {
  using Element = typename Traits::Element;
  auto* const out = static_cast<Element*>(params.out.data);
#pragma unroll
  for (int r = 0; r < Traits::kSubGroupRows; ++r) {
    const int row = place.row0 + r;
    const float sum =
        ::sycl::reduce_over_group(place.sub_group, acc.row_sum[r], ::sycl::plus<float>());
    if (row >= tile.rows()) continue;
    const RowSum<typename Traits::Scores, Math> row_sum(
        params.scores, sum, acc.row_max[r], params.scale_log2, [&] { return tile.head(row); });
    const bool seen = row_sum.total() != 0;
    const float inverse = 1.0f / row_sum.total();
    Element* const to = out + tile.offset(params.out, row) + place.lane;
#pragma unroll
    for (int c = 0; c < Traits::kHeadDimV / Traits::kSubGroup; ++c) {
      to[c * Traits::kSubGroup] = from_float<Element>(seen ? acc.o[r][c] * inverse : 0.0f);
    }
    if (params.lse && place.lane == 0) {
      params.lse[tile.head(row) * params.lse_head_stride + tile.token(row)] =
          seen ? row_sum.lse(acc.row_max[r], params.scale_log2) : -kInfinity;
    }
  }
}

/// kCount: counts in params.work_groups, for tests. Always inlined, into the kernel that the
/// runtime makes of it: else, past some size, the CPU device's compiler takes its parameters for
/// different in every lane, and all that follows from them (0.25x the speed).
template <class Traits, TileScheduler Scheduler, bool kCount = false>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::nd_range_kernel<1>))
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((ext::oneapi::experimental::sub_group_size<Traits::kSubGroup>))
EXACTILE_HOST_DEVICE void prefill_kernel(PrefillParams params,
                                         typename Scheduler::Params schedule) {
  namespace experimental = ext::oneapi::experimental;
  experimental::work_group_static<TileFeed<Scheduler>> feed_memory;
  experimental::work_group_static<LocalTiles<Traits>> local_memory;
  TileFeed<Scheduler>& feed = feed_memory;
  LocalTiles<Traits>& local = local_memory;

  const auto item = ::sycl::ext::oneapi::this_work_item::get_nd_item<1>();
  const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
  const Place place{
      .group = item.get_group(),
      .sub_group = sub_group,
      .item = static_cast<int>(item.get_local_linear_id()),
      .lane = static_cast<int>(sub_group.get_local_linear_id()),
      .row0 = static_cast<int>(sub_group.get_group_linear_id()) * Traits::kSubGroupRows,
  };
  if (place.item == 0) {
    if constexpr (kCount) fetch_add(params.work_groups, 1);
    feed.start(schedule, static_cast<int32_t>(item.get_group_linear_id()));
  }
  ::sycl::group_barrier(place.group);
  while (feed.valid) {
    const TileRows tile(params, feed.tile);
    Accumulators<Traits> acc;
    Mainloop<Traits>(params, tile, place, local).run(acc);
    store_tile(params, tile, place, acc);
    ::sycl::group_barrier(place.group);  // all have read the tile
    if (place.item == 0) {
      if constexpr (kCount) fetch_add(params.work_groups + 1, 1);
      feed.advance();
    }
    ::sycl::group_barrier(place.group);
  }
}

}  // namespace exactile::sycl::portable
