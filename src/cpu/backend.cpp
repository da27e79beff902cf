// src/cpu/backend.cpp - the CPU backend: tiles and cost constants, refusals, launches.
#include "cpu/backend.hpp"

#include <exactile/cpu/params.hpp>

#include "cpu/append.hpp"
#include "cpu/launch.hpp"
#include "cpu/merge.hpp"

namespace exactile::cpu {
namespace {

class CpuBackend final : public BackendInterface {
  Target target(const PlanRequest& /*request*/) const override {
    return {.tile = {.block_m = kBlockM, .block_n = kBlockN, .row_step = 16},
            .key_step = 1,
            .block_overhead_rows = 4,
            .workers = 1};
  }

  /// Longest first balances the workers. Head-major, sequence-major within a head, lets a worker
  /// keep its bf16 copies of K and V, where most of the work is in sequences of many tiles; it
  /// costs 1.3x on short ones, whose heads lie side by side in memory (512 x 34 tokens).
  ListOrder best_order(const Plan& plan, double mean_m_blocks) const override {
    constexpr double kManyTiles = 8;
    const bool copies_last = plan.dtype == Dtype::kBfloat16 && mean_m_blocks >= kManyTiles;
    return copies_last ? ListOrder::kHeadMajor : ListOrder::kLongestFirst;
  }

  std::string refuse_memory(const Device& device) const override {
    if (device.type == kDeviceCpu) return {};
    return expected_memory("CPU memory for the cpu backend", device);
  }

  /// The walk's maker has checked that each tile is there once.
  std::string refuse(const Plan& plan, const PrefillArgs& args) const override {
    const WalkedTiles& walk = args.extras.walk;
    if (!plan.user_scheduler) return {};
    const bool fits = static_cast<int64_t>(walk.begins.size()) == plan.launched + 1 &&
                      static_cast<int64_t>(walk.tiles.size()) == walk.begins.back();
    return fits ? "" : "expected the walked tiles of a Scheduler of your own";
  }

  void launch(const Plan& plan, const PrefillArgs& args) const override { cpu::launch(plan, args); }

  void merge(const MergeArgs& args) const override { cpu::merge(args); }

  void append(const AppendArgs& args) const override { cpu::append(args); }
};
constexpr CpuBackend kBackend;

}  // namespace

const BackendInterface& backend() { return kBackend; }

}  // namespace exactile::cpu
