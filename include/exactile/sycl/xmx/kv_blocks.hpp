// exactile/sycl/xmx/kv_blocks.hpp - the 2D block messages that read K and V, for each layout
// (exactile/kv_layout.hpp).
//
// Keys that are one run are one surface, which the cursors go down. Of others every kRunKeys have a
// surface of their own: the cursors are placed anew for each block of keys.
#pragma once

#include <exactile/sycl/xmx/atoms.hpp>

namespace exactile::sycl::xmx {

/// The rows of a sub-group: consecutive tokens of one query head.
struct Rows {
  int32_t first;        ///< in the packed query tensor
  int32_t count;        ///< that exist, 1 to 16; the others are computed from zeros
  int32_t rows_to_end;  ///< of the first row, as Mask counts them
  int32_t head;
  int32_t kv_head;
  int32_t k_begin, k_len;
};

/// Named registers: declared once, used for one sequence after the other.
template <class Traits>
struct KvCursors {
  using Arch = typename Traits::Arch;
  static constexpr int kRun = Traits::kRunKeys;
  static constexpr int kKeyBlocks = Traits::kBlockN / 16;
  static constexpr int kValueBlocks = Traits::kBlockN / kRun;
  static constexpr Surfaces kSurfaces =
      Traits::KvLayout::kOneRun ? Surfaces::kOne : Surfaces::kEach;
  static_assert(Traits::KvLayout::kOneRun || kRun == 16, "a surface has 16 keys for either");
  /// (kRun, 32) blocks of one block of keys and values, fetched ahead by all sub-groups together.
  static constexpr int kFetchKeys = kValueBlocks * Traits::kHeadDim / 32;
  static constexpr int kFetches = kFetchKeys + kValueBlocks * Traits::kHeadDimV / 32;
  static constexpr int kOwnFetches = (kFetches + Traits::kSubGroups - 1) / Traits::kSubGroups;

  /// Cursors of the blocks that this sub-group fetches ahead for all.
  template <int kCount, int kIndex = 0>
  struct Fetches {
    Cursor<Arch, 'f', kIndex, kValueBlock<kRun>, 1, 1> first;
    Fetches<kCount - 1, kIndex + 1> others;

    template <class Function>
    EXACTILE_HOST_DEVICE void for_each(Function&& f) {
      f(first, Constant<kIndex>{});
      others.for_each(f);
    }
  };
  template <int kIndex>
  struct Fetches<0, kIndex> {
    template <class Function>
    EXACTILE_HOST_DEVICE void for_each(Function&&) {}
  };

  Cursor<Arch, 'k', 0, kKeyBlock, kKeyBlocks, 1, kSurfaces> k;
  Cursor<Arch, 'v', 0, kValueBlock<kRun>, kValueBlocks, Traits::KvLayout::kOneRun ? 2 : 1,
         kSurfaces>
      v;
  Fetches<Traits::KvLayout::kOneRun ? kOwnFetches : 0> fetches;

  EXACTILE_HOST_DEVICE void declare() {
    k.declare();
    v.declare();
    fetches.for_each([](auto& cursor, auto) { cursor.declare(); });
  }
};

/// Sets the cursors for one sequence and kv head.
template <class Traits>
class KvBlocks {
  using KvRows = typename Traits::KvLayout::template Rows<typename Traits::Element>;
  using Cursors = KvCursors<Traits>;
  static constexpr bool kOneRun = Traits::KvLayout::kOneRun;
  static constexpr int kBlockN = Traits::kBlockN;
  static constexpr int kRun = Traits::kRunKeys;

 public:
  EXACTILE_HOST_DEVICE KvBlocks(const PrefillParams& params, const Rows& rows, int sub_group)
      : k_(params.k, params.pages, rows.k_begin, rows.kv_head),
        v_(params.v, params.pages, rows.k_begin, rows.kv_head),
        k_len_(rows.k_len),
        sub_group_(sub_group) {}

  /// To the block of keys from n on; it fetches the next. There is some key.
  EXACTILE_HOST_DEVICE void start(Cursors& cursors, int32_t n) const {
    const Surface k = surface(k_, Traits::kHeadDim), v = surface(v_, Traits::kHeadDimV);
    cursors.k.set(k, {0, n});
    cursors.v.set(v, {0, n});
    cursors.fetches.for_each([&](auto& cursor, auto i) {
      const Fetch fetch = this->fetch(i);
      cursor.set(fetch.is_key ? k : v, {fetch.column, n + kBlockN + fetch.row});
    });
    if constexpr (!kOneRun) place(cursors, n);
  }

  /// Asks for the next block.
  EXACTILE_HOST_DEVICE static void fetch_ahead(Cursors& cursors) {
    cursors.fetches.for_each([](auto& cursor, auto) { prefetch(cursor); });
  }

  /// From the block of keys from n on to the next.
  EXACTILE_HOST_DEVICE void move_down(Cursors& cursors, int32_t n) const {
    if constexpr (kOneRun) {
      cursors.k.template move_down<kBlockN>();
      cursors.v.template move_down<kBlockN>();
      cursors.fetches.for_each([](auto& cursor, auto) { cursor.template move_down<kBlockN>(); });
    } else {
      place(cursors, n + kBlockN);
    }
  }

 private:
  /// Which block of one to fetch the i'th of this sub-group is.
  struct Fetch {
    bool is_key;
    int column, row;
  };
  EXACTILE_HOST_DEVICE Fetch fetch(int i) const {
    const int index = (sub_group_ + i * Traits::kSubGroups) % Cursors::kFetches;
    const bool is_key = index < Cursors::kFetchKeys;
    const int block = is_key ? index : index - Cursors::kFetchKeys;
    const int columns = is_key ? Traits::kHeadDim / 32 : Traits::kHeadDimV / 32;
    return {is_key, block % columns * 32, block / columns * kRun};
  }

  EXACTILE_HOST_DEVICE void place(Cursors& cursors, int32_t n) const {
    constexpr int kRuns = kBlockN / kRun;
    static_assert(kRuns + Cursors::kOwnFetches <= kLanes);
    const int own = lane_anew();
    const Fetch fetch = this->fetch(max(own - kRuns, 0));
    const int32_t key = n + (own < kRuns ? own * kRun : kBlockN + fetch.row);
    const Run k = run(k_, key), v = run(v_, key);
    unrolled<kRuns>([&](auto i) {
      cursors.k.template place<i, i>(k);
      cursors.v.template place<i, i>(v);
    });
    const Run fetched = fetch.is_key ? k : v;
    unrolled<Cursors::kOwnFetches>([&](auto i) {
      const Fetch fetch = this->fetch(i);
      const Run run = of_lane(fetched, kRuns + i);
      const KvRows& rows = fetch.is_key ? k_ : v_;
      prefetch<kValueBlock<kRun>>(
          {.base = run.base,
           .width_bytes = (fetch.is_key ? Traits::kHeadDim : Traits::kHeadDimV) * 2,
           .rows = run.rows,
           .pitch_bytes = static_cast<int>(rows.stride() * 2)},
          {fetch.column, run.y});
    });
  }

  /// All keys, or those from the first one's on.
  EXACTILE_HOST_DEVICE Surface surface(const KvRows& rows, int head_dim) const {
    return {.base = rows[0],
            .width_bytes = head_dim * 2,
            .rows = k_len_,
            .pitch_bytes = static_cast<int>(rows.stride() * 2)};
  }

  /// kRun keys from n on. Past the sequence's last key, below the surface of that one: zeros.
  EXACTILE_HOST_DEVICE Run run(const KvRows& rows, int32_t n) const {
    const int32_t first = min(n, k_len_ - 1);
    return {.base = rows[first], .rows = min(kRun, k_len_ - first), .y = n - first};
  }

  const KvRows k_, v_;
  const int32_t k_len_;
  const int sub_group_;
};

}  // namespace exactile::sycl::xmx
