// src/api/planner.cpp - the planner: checks the lengths, counts, chooses, writes the tile list.
#include "api/planner.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

#include "api/backends.hpp"
#include "api/splitting.hpp"
#include "base/launch_params.hpp"
#include "base/support.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("plan: " + message);
}

void check_cu_seqlens(std::span<const int32_t> cu, const char* name) {
  if (cu.empty()) fail(std::string("expected ") + name + " of length batch + 1, got length 0");
  if (cu[0] != 0) {
    fail(std::string("expected ") + name + "[0] == 0, got " + std::to_string(cu[0]));
  }
  if (cu.back() > kMostTokens) {
    fail("expected at most " + std::to_string(kMostTokens) + " tokens in " + name + ", got " +
         std::to_string(cu.back()));
  }
  int32_t decreasing = 0;  // one pass without a branch: this is on the planner's clock
  for (std::size_t i = 1; i < cu.size(); ++i) decreasing |= cu[i] < cu[i - 1];
  if (!decreasing) return;
  for (std::size_t i = 1; i < cu.size(); ++i) {
    if (cu[i] < cu[i - 1]) {
      fail(std::string("expected ") + name + " not to decrease, got " + std::to_string(cu[i - 1]) +
           " then " + std::to_string(cu[i]) + " at index " + std::to_string(i));
    }
  }
}

/// The lengths of `used` fit into those of `cu`.
void check_seqused(std::span<const int32_t> used, std::span<const int32_t> cu, const char* name) {
  if (used.size() + 1 != cu.size()) {
    fail(std::string("expected ") + name + " of length batch, " + std::to_string(cu.size() - 1) +
         ", got " + std::to_string(used.size()));
  }
  for (std::size_t b = 0; b < used.size(); ++b) {
    const int32_t length = cu[b + 1] - cu[b];
    if (used[b] >= 0 && used[b] <= length) continue;
    fail(std::string("expected ") + name + " between 0 and the length of its sequence, " +
         std::to_string(length) + ", got " + std::to_string(used[b]) + " at index " +
         std::to_string(b));
  }
}

/// Pages and used lengths.
void check_serving(const PlanRequest& r) {
  const bool used = !r.seqused_q.empty() || !r.seqused_k.empty();
  if (!used && r.page_size == 0) return;
  if (r.page_size < 0 || r.page_size > kMostTokens) {
    fail("expected page_size from 1 to " + std::to_string(kMostTokens) + ", got " +
         std::to_string(r.page_size));
  }
  const char* const given = r.page_size > 0 ? "page_size" : "seqused_q or seqused_k";
  if (r.pack_sequences.value_or(false)) {
    fail(std::string("expected no pack_sequences=True with ") + given + ", got both");
  }
  if (!r.seqused_q.empty()) check_seqused(r.seqused_q, r.cu_seqlens_q, "seqused_q");
  if (!r.seqused_k.empty()) check_seqused(r.seqused_k, r.cu_seqlens_k, "seqused_k");
}

void check_request(const PlanRequest& r) {
  if (r.max_len_k && (*r.max_len_k < 0 || *r.max_len_k > kMostTokens)) {
    fail("expected max_seqlen_k from 0 to " + std::to_string(kMostTokens) + ", got " +
         std::to_string(*r.max_len_k));
  }
  check_cu_seqlens(r.cu_seqlens_q, "cu_seqlens_q");
  check_cu_seqlens(r.cu_seqlens_k, "cu_seqlens_k");
  if (r.cu_seqlens_q.size() != r.cu_seqlens_k.size()) {
    fail("expected cu_seqlens_k of the length of cu_seqlens_q, " +
         std::to_string(r.cu_seqlens_q.size()) + ", got " + std::to_string(r.cu_seqlens_k.size()));
  }
  if (r.num_heads_q < 1 || r.num_heads_kv < 1 || r.num_heads_q % r.num_heads_kv != 0) {
    fail("expected num_heads_q to be a positive multiple of num_heads_kv, got " +
         std::to_string(r.num_heads_q) + " and " + std::to_string(r.num_heads_kv));
  }
  if (r.num_heads_q > std::numeric_limits<int32_t>::max()) {
    fail("expected num_heads_q < 2^31, got " + std::to_string(r.num_heads_q));
  }
  if (supported_head_dims(r.backend, r.dtype).empty()) {
    fail(std::string("expected dtype of the ") + name_of(r.backend, kBackendNames) +
         " backend to be one of " + supported_dtypes(r.backend) + ", got " +
         name_of(r.dtype, kDtypeNames));
  }
  if (!is_supported(r.backend, r.dtype, r.head_dim, r.head_dim_v)) {
    fail("expected (head_dim, head_dim_v) of the " +
         std::string(name_of(r.backend, kBackendNames)) + " backend for " +
         name_of(r.dtype, kDtypeNames) + " to be one of " +
         supported_head_dims(r.backend, r.dtype) + ", got (" + std::to_string(r.head_dim) + ", " +
         std::to_string(r.head_dim_v) + ")");
  }
  const BackendInterface& backend = backend_of(r.backend);
  check_serving(r);
  const bool has_no_list = r.scheduler && !has_list(*r.scheduler);
  if (r.pack_sequences.value_or(false) &&
      (!backend.packs_sequences() || r.device_lengths || has_no_list)) {
    fail(
        "expected the cuda backend, lengths on the host and a scheduler with a tile list for "
        "pack_sequences=True, got " +
        std::string(name_of(r.backend, kBackendNames)) +
        (r.device_lengths ? " and lengths on the GPU" : "") +
        (r.scheduler ? std::string(" and ") + name_of(*r.scheduler, kSchedulerNames) : ""));
  }
  if (has_no_list && r.order) {
    fail(std::string("expected no order with scheduler ") + name_of(*r.scheduler, kSchedulerNames) +
         " (its grid has one), got one");
  }
  if (r.order == ListOrder::kSequenceMajor && r.device_lengths) {
    fail("expected lengths on the host for order='sequence_major', got lengths on the GPU");
  }
  if (r.workers && *r.workers < 1) {
    fail("expected workers >= 1, got " + std::to_string(*r.workers));
  }
  if (r.device_lengths && (!backend.takes_device_lengths() || has_no_list)) {
    fail("expected lengths on a GPU for the cuda backend and a scheduler with a tile list, got " +
         std::string(name_of(r.backend, kBackendNames)) +
         (r.scheduler ? std::string(" and ") + name_of(*r.scheduler, kSchedulerNames) : ""));
  }
}

/// What shares a tile: the query heads of a kv head, sequences of up to packed_len tokens.
struct Packing {
  bool gqa;
  int32_t packed_len;
};

const TileSize& tile_size(const Target& target, const Packing& packing) {
  return packing.packed_len > 0 ? target.packed_tile : target.tile;
}

TileListSpec list_spec(const PlanRequest& r, const Target& target, const Packing& packing) {
  const auto group = static_cast<int32_t>(r.num_heads_q / r.num_heads_kv);
  const TileSize& tile = tile_size(target, packing);
  return {.cu_seqlens_q = r.cu_seqlens_q.data(),
          .cu_seqlens_k = r.page_size > 0 ? nullptr : r.cu_seqlens_k.data(),
          .batch = static_cast<int32_t>(r.cu_seqlens_q.size()) - 1,
          .tile_tokens = packing.gqa ? tile.block_m / group : tile.block_m,
          .block_n = tile.block_n,
          .mask = r.mask,
          .packed_len = packing.packed_len,
          .seqused_q = data_or_null(r.seqused_q),
          .seqused_k = data_or_null(r.seqused_k)};
}

/// The cost model of packing: a tile costs its rows by its keys, both rounded up to what is
/// computed together, the visits of its key blocks (staging K and V on the CPU), and its begin and
/// end (a GPU's loads and stores that nothing overlaps with). Packing saves visits and fills rows
/// up; it loses where a sequence's last tile gets emptier, and where tiles of several sequences
/// compute more keys that one of them does not see. Exact up to 2^53.
double modelled_cost(const PlanRequest& r, const Target& target, const Packing& packing) {
  const TileListSpec spec = list_spec(r, target, packing);
  const int64_t group = packing.gqa ? r.num_heads_q / r.num_heads_kv : 1;
  const int64_t row_step = tile_size(target, packing).row_step;
  const auto cost = [&](int64_t tokens, int64_t keys) {
    const int64_t rows = ceil_div(tokens * group, row_step) * row_step;
    const int64_t computed = ceil_div<int64_t>(keys, target.key_step) * target.key_step;
    return static_cast<double>(rows + target.block_overhead_rows) *
           static_cast<double>(computed + target.tile_overhead_keys);
  };
  double total = 0;
  for (int32_t b = 0; b < spec.batch; ++b) {
    if (packing.packed_len > 0 && is_packed_sequence(spec, b)) {
      b = for_each_packed_tile(spec, b,
                               [&](const TileRecord& tile) {
                                 total += cost(spec.tile_tokens,
                                               tile.is_packed() ? tile.packed_keys() : tile.k_len);
                               }) -
          1;
      continue;
    }
    const TileRecord all = sequence_record(spec, b);
    const int32_t len_q = all.q_end - all.q_begin;
    const int64_t len_k = all.k_len;
    total += static_cast<double>(len_q / spec.tile_tokens) * cost(spec.tile_tokens, len_k) +
             cost(len_q % spec.tile_tokens, len_k);
  }
  return total * static_cast<double>(r.num_heads_q / group);
}

/// The cheapest of what the request leaves open; of equal ones that with the least packing.
Packing choose_packing(const PlanRequest& r, const Target& target, SchedulerKind scheduler) {
  const int64_t group = r.num_heads_q / r.num_heads_kv;
  const int32_t packed_block_m = target.packed_tile.block_m;
  const int32_t block_m = r.pack_sequences.value_or(false) ? packed_block_m : target.tile.block_m;
  if (r.pack_gqa.value_or(false) && group > block_m) {
    fail("expected at most " + std::to_string(block_m) +
         " query heads per kv head with pack_gqa=True, got " + std::to_string(group));
  }
  const bool chooses = packs(scheduler);
  const bool may_pack_gqa = r.pack_gqa.value_or(chooses && group > 1 && group <= block_m);
  const bool may_not_pack_gqa = !r.pack_gqa.value_or(false);
  // Long sequences have little to gain, and the question costs a walk over the batch.
  const auto batch = static_cast<int64_t>(r.cu_seqlens_q.size()) - 1;
  const bool short_ones =
      max(r.cu_seqlens_q.back(), r.cu_seqlens_k.back()) <= 2 * target.tile.block_m * batch;
  const bool all_used = r.num_splits.value_or(1) == 1 && r.seqused_q.empty() &&
                        r.seqused_k.empty() && r.page_size == 0;
  const bool may_pack =
      r.pack_sequences.value_or(chooses && target.packing_pays && short_ones && all_used &&
                                !r.device_lengths && !r.user_scheduler);
  const bool may_not_pack = !r.pack_sequences.value_or(false);
  std::vector<Packing> candidates;
  for (const bool gqa : {false, true}) {
    if (!(gqa ? may_pack_gqa : may_not_pack_gqa)) continue;
    if (may_not_pack) candidates.push_back({.gqa = gqa, .packed_len = 0});
    const auto tile_tokens = static_cast<int32_t>(packed_block_m / (gqa ? group : 1));
    if (may_pack && tile_tokens > 0) {
      candidates.push_back({.gqa = gqa, .packed_len = 2 * tile_tokens});
    }
  }
  if (candidates.size() == 1) return candidates[0];
  return *std::ranges::min_element(
      candidates, {}, [&](const Packing& packing) { return modelled_cost(r, target, packing); });
}

/// Whether the target can do what is asked for.
void check_splits(const PlanRequest& r, const Target& target, const Packing& packing) {
  if (!r.num_splits) return;
  const std::string got = ", got num_splits=" + std::to_string(*r.num_splits);
  if (*r.num_splits == 1) return;
  if (!target.splits_keys) {
    fail(std::string("expected num_splits=1, or None, for the ") +
         name_of(r.backend, kBackendNames) + " backend, which does not split keys" + got);
  }
  if (r.device_lengths) fail("expected lengths on the host with num_splits > 1" + got);
  if (packing.packed_len > 0) fail("expected no pack_sequences=True with num_splits > 1" + got);
  if (r.scheduler && !has_list(*r.scheduler)) {
    fail(std::string("expected a scheduler with a tile list for num_splits > 1, not ") +
         name_of(*r.scheduler, kSchedulerNames) + got);
  }
}

/// FLOPs and bytes from the pairs and rows that exist; each needed row is read once, each output
/// row written once. Returns the m_blocks of a sequence, averaged over the visible pairs.
double count_work(const PlanRequest& r, const TileListSpec& spec, Plan& plan) {
  int64_t rows_q = 0, rows_k = 0, rows_out = 0, all_k = 0;
  double weighted_m_blocks = 0;
  const bool full = r.mask.left < 0 && r.mask.right < 0;
  for (int32_t b = 0; b < spec.batch; ++b) {
    const TileRecord all = sequence_record(spec, b);
    const int32_t len_q = all.q_end - all.q_begin, len_k = all.k_len;
    rows_out += len_q;
    all_k += len_k;
    const int32_t m_blocks = num_m_blocks(len_q, plan.tile_tokens);
    plan.num_records += m_blocks;
    plan.max_m_blocks = max(plan.max_m_blocks, m_blocks);
    plan.max_len_k = max(plan.max_len_k, len_k);
    if (len_q == 0 || len_k == 0) continue;
    const int64_t pairs = full ? int64_t{len_q} * len_k : visible_pairs(r.mask, len_q, len_k);
    plan.pairs += pairs;
    weighted_m_blocks += static_cast<double>(pairs) * m_blocks;
    if (full) {
      rows_q += len_q;
      rows_k += len_k;
      continue;
    }
    const KeyRange keys = r.mask.any_visible(len_q, 1, len_k);
    rows_k += max(0, keys.end - keys.begin);
    // Without a right bound every row sees a key; with one, only those at positions >= -right do.
    rows_q += r.mask.right < 0 ? len_q : min(int64_t{len_q}, int64_t{len_k} + r.mask.right);
  }
  constexpr double kLimit = 9.2e18;  // 2^63
  const double flops = 2.0 * r.num_heads_q * (r.head_dim + r.head_dim_v) * plan.pairs;
  if (flops >= kLimit) fail("expected less than 2^63 FLOPs, got " + std::to_string(flops));
  const double bytes = 4.0 * (r.head_dim + r.head_dim_v) *
                       (2.0 * rows_out * r.num_heads_q + 1.0 * all_k * r.num_heads_kv);
  if (bytes >= kLimit) fail("expected less than 2^63 bytes, got " + std::to_string(bytes));
  plan.flops = 2 * r.num_heads_q * (r.head_dim + r.head_dim_v) * plan.pairs;
  plan.bytes = dtype_bytes(r.dtype) * (rows_q * r.num_heads_q * r.head_dim +
                                       rows_k * r.num_heads_kv * (r.head_dim + r.head_dim_v) +
                                       rows_out * r.num_heads_q * r.head_dim_v);
  return plan.pairs > 0 ? weighted_m_blocks / static_cast<double>(plan.pairs) : 0;
}

/// Working memory of write_sorted_tiles.
struct SortMemory {
  std::vector<TileRecord> natural;
  std::vector<int32_t> cost, start;
};

/// `num_tiles`: those of the list, none of which is split.
void write_list(const TileListSpec& spec, int64_t num_tiles, Plan& plan) {
  plan.records = std::make_unique_for_overwrite<TileRecord[]>(num_tiles);
  if (plan.order == ListOrder::kNatural) return write_tiles(spec, plan.records.get());
  // Kept by the thread, up to 20 MiB: fresh memory would cost more than the sort.
  constexpr int64_t kKeptRecords = 1 << 20;
  thread_local SortMemory kept;
  SortMemory fresh;
  SortMemory& memory = num_tiles <= kKeptRecords ? kept : fresh;
  if (memory.natural.size() < static_cast<std::size_t>(num_tiles)) {
    memory.natural.resize(num_tiles);
    memory.cost.resize(num_tiles);
  }
  memory.start.resize(kMaxCost + 1);
  write_sorted_tiles(
      spec, plan.order, plan.records.get(),
      {.natural = memory.natural.data(), .cost = memory.cost.data(), .start = memory.start.data()});
}

/// As the policy says, where its indices can be counted; or as many as are `wanted`.
int32_t num_work_groups(const Plan& plan, std::optional<int32_t> wanted) {
  int64_t indices = plan.valid;
  if (!has_list(plan.scheduler)) {
    indices = int64_t{plan.max_m_blocks} * plan.tile_heads;  // < 2^62; times batch may pass 2^63
    if (indices < (int64_t{1} << 31)) indices *= plan.batch();
  }
  // A counter runs past the last tile by one per work-group.
  const int64_t past_end = max(plan.workers, wanted.value_or(0));
  if (max(indices, plan.valid) + past_end > std::numeric_limits<int32_t>::max()) {
    fail("expected work-groups and tiles to be counted in 31 bits, got at least " +
         std::to_string(max(indices, plan.valid)) + " with scheduler " +
         name_of(plan.scheduler, kSchedulerNames));
  }
  if (wanted) return *wanted;
  return with_policy(plan.scheduler, [&]<class Policy>() {
    const auto params = schedule_params<typename Policy::Params>(plan, host_lists(plan));
    return Policy::num_work_groups(params, plan.workers);
  });
}

}  // namespace

Plan make_plan(PlanRequest r) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<int32_t> cu_seqlens_q(r.cu_seqlens_q.begin(), r.cu_seqlens_q.end());
  std::vector<int32_t> cu_seqlens_k(r.cu_seqlens_k.begin(), r.cu_seqlens_k.end());
  r.cu_seqlens_q = cu_seqlens_q;
  r.cu_seqlens_k = cu_seqlens_k;
  std::vector<int32_t> seqused_q(r.seqused_q.begin(), r.seqused_q.end());
  std::vector<int32_t> seqused_k(r.seqused_k.begin(), r.seqused_k.end());
  r.seqused_q = seqused_q;
  r.seqused_k = seqused_k;
  check_request(r);
  if (r.page_size > 0 && seqused_k.empty()) {
    for (std::size_t b = 0; b + 1 < cu_seqlens_k.size(); ++b) {
      seqused_k.push_back(cu_seqlens_k[b + 1] - cu_seqlens_k[b]);
    }
    r.seqused_k = seqused_k;
  }
  const BackendInterface& backend = backend_of(r.backend);
  const Target target = backend.target(r);
  const SchedulerKind scheduler = r.scheduler.value_or(kDefaultScheduler);
  const Packing packing = choose_packing(r, target, scheduler);
  const TileListSpec spec = list_spec(r, target, packing);
  Plan plan{
      .cu_seqlens_q = std::move(cu_seqlens_q),  // where the spans lead stays
      .cu_seqlens_k = std::move(cu_seqlens_k),
      .seqused_q = std::move(seqused_q),
      .seqused_k = std::move(seqused_k),
      .page_size = static_cast<int32_t>(r.page_size),
      .num_heads_q = static_cast<int32_t>(r.num_heads_q),
      .num_heads_kv = static_cast<int32_t>(r.num_heads_kv),
      .head_dim = static_cast<int32_t>(r.head_dim),
      .head_dim_v = static_cast<int32_t>(r.head_dim_v),
      .dtype = r.dtype,
      .mask = r.mask,
      .scheduler = scheduler,
      .order = ListOrder::kNatural,
      .pack_gqa = packing.gqa,
      .packed_len = packing.packed_len,
      .backend = r.backend,
      .sycl_kernel = r.sycl_kernel,
      .workers = r.workers.value_or(target.workers),
      .block_m = tile_size(target, packing).block_m,
      .block_n = spec.block_n,
      .tile_tokens = spec.tile_tokens,
      .tile_heads = static_cast<int32_t>(packing.gqa ? r.num_heads_kv : r.num_heads_q),
      .user_scheduler = r.user_scheduler,
      .device_lengths = r.device_lengths,
  };
  plan.memory = backend.make_memory();
  check_splits(r, target, packing);
  const double mean_m_blocks = count_work(r, spec, plan);
  if (has_list(scheduler)) plan.order = r.order.value_or(backend.best_order(plan, mean_m_blocks));
  if (packing.packed_len > 0) plan.num_records = count_tiles(spec);
  if (r.device_lengths) {
    plan.max_len_k = r.max_len_k.value_or(plan.total_k());
    plan.num_records = backend.max_records(plan);
  } else if (r.max_len_k && plan.max_len_k > *r.max_len_k) {
    fail("expected at most max_seqlen_k=" + std::to_string(*r.max_len_k) +
         " keys in a sequence, got " + std::to_string(plan.max_len_k));
  }
  const int64_t num_tiles = plan.num_records;
  const Splitting splitting = choose_splitting(r, spec, target, plan);
  if (splitting.splits()) plan.num_records = count_parts(spec, splitting);
  const bool splits = plan.num_records > num_tiles;  // some tile has more than one block
  plan.valid = plan.num_records * plan.tile_heads;
  plan.launched = num_work_groups(plan, r.work_groups);
  if (r.device_lengths) {
    plan.valid = plan.pairs = plan.flops = plan.bytes = 0;
    backend.plan_on_device(plan);
  } else if (has_list(scheduler)) {
    write_list(spec, num_tiles, plan);
    if (splits) split_list(spec, splitting, num_tiles, plan);
  }
  const std::chrono::duration<double, std::micro> elapsed =
      std::chrono::steady_clock::now() - begin;
  plan.planning_us = elapsed.count();
  return plan;
}

}  // namespace exactile
