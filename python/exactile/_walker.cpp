// python/exactile/_walker.cpp - walks every work-group of a policy and prints which tiles it
// gives.
//
// A program of its own, compiled with the policy (`_walker.py` says how) and run beside the Python
// process: a policy that crashes or never ends does no harm there. Reads a Request and its lists
// from stdin; writes two walks to stdout, or a Fault. With an argument it writes how many
// work-groups the policy wants launched, and walks none.
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <vector>

// Words of CUDA that a policy may use.
#define __host__
#define __device__
#define __forceinline__ inline

#include <exactile/scheduler.hpp>

#include <exactile_policy.hpp>

namespace {

using Policy = EXACTILE_POLICY;
using Like = EXACTILE_LIKE;
static_assert(exactile::TileScheduler<Policy>);
static_assert(exactile::SameAs<Policy::Params, Like::Params>);

struct Request {
  std::int32_t batch, tile_tokens, tile_heads, max_m_blocks;
  std::int32_t head_major;
  std::int32_t given_records;  // behind the lengths; 0: the list is to be made, by sequence
  std::int32_t max_records;    // bound that a launch without knowledge of the lengths has; or 0
  std::int32_t work_groups, workers;  // launched (to count: as for the policy it is like)
  std::int32_t processor_seconds;
  std::int32_t is_paged;
};

/// How a program ends that could not write its walks.
enum FaultKind : std::int32_t { kNoFault, kUnknownTile, kSignal };
struct Fault {
  std::int32_t kind;
  std::int32_t work_group;
  std::int32_t signal;
  std::int32_t q_begin, q_end, k_begin, k_len, head;  // of the unknown tile
};

int g_results = STDOUT_FILENO;
volatile std::sig_atomic_t g_work_group = -1;

void put(const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = write(g_results, at, bytes);
    if (written <= 0) _exit(1);
    at += written;
    bytes -= static_cast<std::size_t>(written);
  }
}

[[noreturn]] void end_with(const Fault& fault) {
  put(&fault, sizeof fault);
  _exit(0);
}

void on_signal(int signal) {
  Fault fault{};
  fault.kind = kSignal;
  fault.work_group = static_cast<std::int32_t>(g_work_group);
  fault.signal = signal;
  end_with(fault);
}

template <class T>
std::vector<T> read_values(std::size_t size) {
  std::vector<T> values(size);
  if (std::fread(values.data(), sizeof(T), size, stdin) != size) std::exit(1);
  return values;
}

/// The tiles that exist, and the policy's parameters.
struct Batch {
  Request request;
  std::vector<std::int32_t> cu_q, cu_k, used_q, used_k;
  std::vector<exactile::TileRecord> records;
  std::vector<std::int32_t> by_row;  // positions of records, by q_begin
  std::int32_t counter = 0;
  std::int32_t num_records = 0;

  Batch() : request(read_values<Request>(1)[0]) {
    cu_q = read_values<std::int32_t>(request.batch + 1);
    cu_k = read_values<std::int32_t>(request.batch + 1);
    used_q = read_values<std::int32_t>(request.batch);
    used_k = read_values<std::int32_t>(request.batch);
    records = read_values<exactile::TileRecord>(request.given_records);
    if (records.empty()) {
      const exactile::TileListSpec spec{.cu_seqlens_q = cu_q.data(),
                                        .cu_seqlens_k = keys(),
                                        .batch = request.batch,
                                        .tile_tokens = request.tile_tokens,
                                        .block_n = 1,
                                        .mask = {},
                                        .seqused_q = used_q.data(),
                                        .seqused_k = used_k.data()};
      records.resize(exactile::count_tiles(spec));
      exactile::write_tiles(spec, records.data());
    }
    num_records = static_cast<std::int32_t>(records.size());
    for (std::int32_t i = 0; i < num_records; ++i) by_row.push_back(i);
    std::ranges::sort(by_row, {}, [this](std::int32_t i) { return records[i].q_begin; });
  }

  const std::int32_t* keys() const { return request.is_paged ? nullptr : cu_k.data(); }
  std::int64_t num_tiles() const { return std::int64_t{num_records} * request.tile_heads; }

  /// A template, for the branches of other policies not to be looked at.
  template <class Params>
  Params params() {
    const exactile::CompactList list{
        .records = records.data(),
        .num_records = request.max_records > 0 ? request.max_records : num_records,
        .num_heads = request.tile_heads,
        .head_major = request.head_major != 0,
        .planned = request.max_records > 0 ? &num_records : nullptr};
    if constexpr (exactile::SameAs<Params, exactile::PaddedGrid>) {
      return {.cu_seqlens_q = cu_q.data(),
              .cu_seqlens_k = keys(),
              .batch = request.batch,
              .num_heads = request.tile_heads,
              .max_m_blocks = request.max_m_blocks,
              .tile_tokens = request.tile_tokens,
              .seqused_q = used_q.data(),
              .seqused_k = used_k.data()};
    } else if constexpr (exactile::SameAs<Params, exactile::CountedList>) {
      return {list, &counter, request.work_groups};
    } else {
      return list;
    }
  }

  /// record * heads + head; -1: there is no such tile.
  std::int32_t index_of(const exactile::WorkTile& tile) const {
    const auto found = std::ranges::lower_bound(
        by_row, tile.rows.q_begin, {}, [this](std::int32_t i) { return records[i].q_begin; });
    if (found == by_row.end() || tile.head < 0 || tile.head >= request.tile_heads) return -1;
    const exactile::TileRecord& record = records[*found];
    const bool same = record.q_begin == tile.rows.q_begin && record.q_end == tile.rows.q_end &&
                      record.k_begin == tile.rows.k_begin && record.k_len == tile.rows.k_len;
    return same ? *found * request.tile_heads + tile.head : -1;
  }
};

struct Given {
  std::int32_t work_group, index;
};

/// A work-group that has begun. It stays where it is: a policy need not be copyable.
struct InFlight {
  std::int32_t work_group;
  bool ended = false;
  Policy policy;

  InFlight(const Policy::Params& params, std::int32_t group)
      : work_group(group), policy(params, group) {}
};

/// Walks with `at_a_time` work-groups in flight, each of which takes a step in turn. Ends early
/// with one tile more than there are: then some tile was given twice.
std::vector<Given> walk(Batch& batch, std::int32_t at_a_time) {
  batch.counter = 0;
  const auto params = batch.params<Policy::Params>();
  std::vector<Given> given;
  std::list<InFlight> in_flight;
  std::int32_t started = 0;
  while (true) {
    while (started < batch.request.work_groups &&
           static_cast<std::int32_t>(in_flight.size()) < at_a_time) {
      g_work_group = started;
      in_flight.emplace_back(params, started);
      ++started;
    }
    if (in_flight.empty()) return given;
    for (InFlight& walk : in_flight) {
      g_work_group = walk.work_group;
      if (!walk.policy.is_valid()) {
        walk.ended = true;
        continue;
      }
      const exactile::WorkTile tile = walk.policy.tile();
      const std::int32_t index = batch.index_of(tile);
      if (index < 0) {
        end_with({.kind = kUnknownTile,
                  .work_group = walk.work_group,
                  .signal = 0,
                  .q_begin = tile.rows.q_begin,
                  .q_end = tile.rows.q_end,
                  .k_begin = tile.rows.k_begin,
                  .k_len = tile.rows.k_len,
                  .head = tile.head});
      }
      given.push_back({walk.work_group, index});
      if (static_cast<std::int64_t>(given.size()) > batch.num_tiles()) return given;
      walk.policy.advance();
    }
    std::erase_if(in_flight, [](const InFlight& walk) { return walk.ended; });
  }
}

void put_walk(const std::vector<Given>& given) {
  const auto size = static_cast<std::int64_t>(given.size());
  put(&size, sizeof size);
  put(given.data(), given.size() * sizeof(Given));
}

}  // namespace

int main(int argc, char**) {
  g_results = dup(STDOUT_FILENO);  // what the policy prints goes to stderr
  dup2(STDERR_FILENO, STDOUT_FILENO);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGXCPU}) {
    std::signal(signal, on_signal);
  }
  Batch batch;
  const auto seconds = static_cast<rlim_t>(batch.request.processor_seconds);
  const rlimit limit{.rlim_cur = seconds, .rlim_max = seconds + 1};
  setrlimit(RLIMIT_CPU, &limit);
  const Fault none{};
  if (argc > 1) {
    const std::int32_t count =
        Policy::num_work_groups(batch.params<Policy::Params>(), batch.request.workers);
    put(&none, sizeof none);
    put(&count, sizeof count);
    return 0;
  }
  const std::vector<Given> one_by_one = walk(batch, 1);
  const std::vector<Given> in_turn = walk(batch, std::max(2, batch.request.workers));
  put(&none, sizeof none);
  put_walk(one_by_one);
  put_walk(in_turn);
  return 0;
}
