// src/cuda/backend.cpp - the CUDA backend: tiles and cost constants, refusals, launches.
#include "cuda/backend.hpp"

#include <exactile/cuda/planner_params.hpp>

#include "cuda/launch.hpp"
#include "cuda/page_check.hpp"
#include "cuda/plan_memory.hpp"
#include "cuda/rows.hpp"

namespace exactile::cuda {
namespace {

/// The device that plans are made for; null where there is no driver or no GPU.
const Device* planning_device() {
  try {
    return &Device::get(Device::current());
  } catch (const std::runtime_error&) {
    return nullptr;
  }
}

class CudaBackend final : public BackendInterface {
  /// The current device, else an H100: planning needs no device.
  Target target(const PlanRequest& request) const override {
    constexpr int kH100Multiprocessors = 132;
    const Device* const device = planning_device();
    const Family family = device && best_family(10 * device->major() + device->minor())
                              ? device->family()
                              : family_from_environment().value_or(Family::kSm90);
    const auto tile = [&](bool packs_sequences) -> TileSize {
      const Shape shape = shape_of(family, mask_kind(request.mask, packs_sequences), request.dtype,
                                   request.head_dim, request.head_dim_v);
      return {.block_m = shape.block_m, .block_n = shape.block_n, .row_step = shape.block_m};
    };
    return {.tile = tile(false),
            .packed_tile = tile(true),
            .packing_pays = traits_of(family).packing_pays,
            .key_step = 64,
            .tile_overhead_keys = 96,
            .workers = device ? device->multiprocessors() : kH100Multiprocessors,
            .splits_keys = true};
  }

  /// Head-major is worth 4 % on 8 x 8192, causal, and costs 4 to 10 % where lengths differ.
  ListOrder best_order(const Plan& plan, double mean_m_blocks) const override {
    return order_for_shared_cache(plan, mean_m_blocks, 16 << 20);
  }

  bool packs_sequences() const override { return true; }

  bool takes_device_lengths() const override { return true; }
  int64_t max_records(const Plan& plan) const override {
    return max_num_records(plan.total_q(), plan.batch(), plan.tile_tokens);
  }
  void plan_on_device(const Plan& plan) const override { enqueue_planner(plan); }

  std::shared_ptr<PlanMemory> make_memory() const override {
    return std::make_shared<DevicePlans>();
  }

  std::string refuse_memory(const exactile::Device& device) const override {
    if (device.type == kDeviceCuda || device.type == kDeviceCudaManaged) return {};
    return expected_memory("CUDA memory for the cuda backend", device);
  }

  std::string refuse(const Plan& plan, const PrefillArgs& args) const override {
    return refusal(plan, args);
  }

  void check_pages(const Plan& plan, const PrefillArgs& args) const override {
    cuda::check_pages(plan, args);
  }

  void launch(const Plan& plan, const PrefillArgs& args) const override {
    cuda::launch(plan, args);
  }

  std::string refuse_merge(const MergeArgs& args) const override { return merge_refusal(args); }
  void merge(const MergeArgs& args) const override { cuda::merge(args); }

  std::string refuse_append(const AppendArgs& args) const override { return append_refusal(args); }
  void append(const AppendArgs& args) const override { cuda::append(args); }
};
constexpr CudaBackend kBackend;

}  // namespace

const BackendInterface& backend() { return kBackend; }

}  // namespace exactile::cuda
