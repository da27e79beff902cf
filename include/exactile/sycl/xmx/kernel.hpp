// exactile/sycl/xmx/kernel.hpp - one work-group: the scheduler loop around mainloop and store.
#pragma once

#include <exactile/sycl/tile.hpp>
#include <exactile/sycl/xmx/mainloop.hpp>
#include <sycl/ext/oneapi/work_group_static.hpp>

namespace exactile::sycl::xmx {

/// Writes O = o / row_sum and the LSE. A row that saw no key has row_sum 0 (without a sink): O = 0,
/// LSE = -inf.
template <class Traits>
EXACTILE_HOST_DEVICE void store_rows_of(const PrefillParams& params, const Rows& rows,
                                        typename Mainloop<Traits>::Registers& registers,
                                        const References& references) {
  using Element = typename Traits::Element;
  constexpr int kRowBlocks = Traits::kSubGroupRows / 8;
  const float sum = reduce_rows<Reduction::kSum>(registers.row_sum);
  const RowSum<typename Traits::Scores, Math> row_sum(params.scores, sum,
                                                      references.log2_of_base(params.scale_log2),
                                                      1.0f, [&] { return rows.head; });
  const bool seen = row_sum.total() != 0;
  const float inverse = seen ? 1.0f / row_sum.total() : 0.0f;
  const Surface out =
      head_surface<Traits>(params.out, rows.first, rows.head, rows.count, Traits::kHeadDimV);
  unrolled<Traits::kHeadDimV / 16>([&](auto c) {
    unrolled<kRowBlocks>([&](auto i) {
      auto&& o = registers.o.at(c, i);
      scale_rows<i>(o, inverse);
      store_rows(out, {c * 16, i * 8}, convert<Element>(o));
    });
  });
  if (params.lse && lane() < rows.count) {
    params.lse[rows.head * params.lse_head_stride + rows.first + lane()] =
        seen ? row_sum.lse(references.log2_of_base(params.scale_log2), 1.0f) : -kInfinity;
  }
}

/// A sub-group takes consecutive tokens of one head, also where the tile packs heads: 32 tokens of
/// 4 heads are 8 sub-groups of 16 rows, and a 2D message reads rows at one pitch.
template <class Traits>
EXACTILE_HOST_DEVICE void attend_tile(const PrefillParams& params, const TileRows& tile,
                                      int sub_group,
                                      typename Mainloop<Traits>::Registers& registers) {
  const int chunks = ceil_div(tile.tokens, Traits::kSubGroupRows) * tile.heads;
  for (int chunk = sub_group; chunk < chunks; chunk += Traits::kSubGroups) {
    const int token = chunk / tile.heads * Traits::kSubGroupRows;
    const Rows rows{.first = tile.record.q_begin + token,
                    .count = min(tile.tokens - token, Traits::kSubGroupRows),
                    .rows_to_end = tile.record.q_end - tile.record.q_begin - token,
                    .head = tile.first_head + chunk % tile.heads,
                    .kv_head = tile.kv_head,
                    .k_begin = tile.record.k_begin,
                    .k_len = tile.record.k_len};
    const References references = Mainloop<Traits>(params, rows, sub_group).run(registers);
    store_rows_of<Traits>(params, rows, registers, references);
  }
}

/// kCount: counts in params.work_groups, for tests. Always inlined: see the portable one.
template <class Traits, TileScheduler Scheduler, bool kCount = false>
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY((::sycl::ext::oneapi::experimental::nd_range_kernel<1>))
SYCL_EXT_ONEAPI_FUNCTION_PROPERTY(
    (::sycl::ext::oneapi::experimental::sub_group_size<Traits::kSubGroup>))
EXACTILE_HOST_DEVICE void prefill_kernel(PrefillParams params,
                                         typename Scheduler::Params schedule) {
  namespace experimental = ::sycl::ext::oneapi::experimental;
  experimental::work_group_static<TileFeed<Scheduler>> feed_memory;
  TileFeed<Scheduler>& feed = feed_memory;

  const auto item = ::sycl::ext::oneapi::this_work_item::get_nd_item<1>();
  const auto sub_group = ::sycl::ext::oneapi::this_work_item::get_sub_group();
  // Uniform, which the compiler cannot prove.
  const int sub_group_index =
      ::sycl::group_broadcast(sub_group, static_cast<int>(sub_group.get_group_linear_id()), 0);
  typename Mainloop<Traits>::Registers registers;
  registers.declare();
  const bool walks = item.get_local_linear_id() == 0;
  if (walks) {
    if constexpr (kCount) fetch_add(params.work_groups, 1);
    feed.start(schedule, static_cast<int32_t>(item.get_group_linear_id()));
  }
  ::sycl::group_barrier(item.get_group());
  while (feed.valid) {
    attend_tile<Traits>(params, TileRows(params, feed.tile), sub_group_index, registers);
    ::sycl::group_barrier(item.get_group());  // all have read the tile
    if (walks) {
      if constexpr (kCount) fetch_add(params.work_groups + 1, 1);
      feed.advance();
    }
    ::sycl::group_barrier(item.get_group());
  }
}

}  // namespace exactile::sycl::xmx
