// tests/cpp/static_concepts.cpp - what the two concepts accept and what they reject.
#include <exactile/scheduler.hpp>

namespace exactile::test {

struct Order {
  int32_t num_tiles() const { return 0; }
  WorkTile tile(int32_t) const { return {}; }
};
static_assert(TileOrder<Order> && TileOrder<PaddedGrid> && TileOrder<CompactList>);

struct OrderOf64Bits : Order {
  int64_t num_tiles() const { return 0; }
};
struct OrderOfRecords : Order {
  TileRecord tile(int32_t) const { return {}; }
};
struct OrderWithState : Order {
  WorkTile tile(int32_t) { return {}; }
};
struct OrderWithoutIndex : Order {
  WorkTile tile() const { return {}; }
};
static_assert(!TileOrder<int>);
static_assert(!TileOrder<Individual>);
static_assert(!TileOrder<OrderOf64Bits>);
static_assert(!TileOrder<OrderOfRecords>);
static_assert(!TileOrder<OrderWithState>);
static_assert(!TileOrder<OrderWithoutIndex>);

struct Scheduler {
  struct Params {};
  Scheduler(const Params&, int32_t) {}
  static int32_t num_work_groups(const Params&, int32_t) { return 0; }
  bool is_valid() const { return false; }
  WorkTile tile() const { return {}; }
  void advance() {}
};
static_assert(TileScheduler<Scheduler> && TileScheduler<Individual> &&
              TileScheduler<ValidOnlyIndividual> && TileScheduler<ValidOnlyPersistent>);

// Each of these breaks one duty of a scheduler that is right otherwise.
struct PrivateParams : Scheduler {
  using Scheduler::Scheduler;

 private:
  using Params = Scheduler::Params;
};
struct NoConstructor : Scheduler {
  explicit NoConstructor(const Params& params) : Scheduler(params, 0) {}
};
struct MutableParams : Scheduler {
  MutableParams(Params& params, int32_t work_group) : Scheduler(params, work_group) {}
};
struct LaunchOf64Bits : Scheduler {
  using Scheduler::Scheduler;
  static int64_t num_work_groups(const Params&, int32_t) { return 0; }
};
struct LaunchOfObject : Scheduler {
  using Scheduler::Scheduler;
  int32_t num_work_groups(const Params&, int32_t) { return 0; }
};
struct LaunchWithoutWorkers : Scheduler {
  using Scheduler::Scheduler;
  static int32_t num_work_groups(const Params&) { return 0; }
};
struct ValidAsInt : Scheduler {
  using Scheduler::Scheduler;
  int32_t is_valid() const { return 0; }
};
struct ValidWithState : Scheduler {
  using Scheduler::Scheduler;
  bool is_valid() { return false; }
};
struct TileOfRecord : Scheduler {
  using Scheduler::Scheduler;
  TileRecord tile() const { return {}; }
};
struct TileWithState : Scheduler {
  using Scheduler::Scheduler;
  WorkTile tile() { return {}; }
};
struct NoAdvance : Scheduler {
  using Scheduler::Scheduler;
  void advance() = delete;
};
static_assert(!TileScheduler<int>);
static_assert(!TileScheduler<PaddedGrid> && !TileScheduler<CompactList>);
static_assert(!TileScheduler<PrivateParams>);
static_assert(!TileScheduler<NoConstructor>);
static_assert(!TileScheduler<MutableParams>);
static_assert(!TileScheduler<LaunchOf64Bits>);
static_assert(!TileScheduler<LaunchOfObject>);
static_assert(!TileScheduler<LaunchWithoutWorkers>);
static_assert(!TileScheduler<ValidAsInt>);
static_assert(!TileScheduler<ValidWithState>);
static_assert(!TileScheduler<TileOfRecord>);
static_assert(!TileScheduler<TileWithState>);
static_assert(!TileScheduler<NoAdvance>);

}  // namespace exactile::test
