// src/sycl/backend.cpp - the SYCL backend: tiles and cost constants, refusals, launches.
#include "sycl/backend.hpp"

#include "sycl/append.hpp"
#include "sycl/kernels.hpp"
#include "sycl/launch.hpp"
#include "sycl/merge.hpp"
#include "sycl/plan_memory.hpp"

namespace exactile::sycl {
namespace {

class SyclBackend final : public BackendInterface {
  /// Every visit of the XMX kernel reads K and V from the second-level cache, which on paper bounds
  /// it before its arithmetic does: where rows cost the same, fewer visits win. Not measured.
  Target target(const PlanRequest& request) const override {
    const Shape shape = shape_of(request.sycl_kernel, {.dtype = request.dtype,
                                                       .head_dim = request.head_dim,
                                                       .head_dim_v = request.head_dim_v,
                                                       .page_size = request.page_size});
    return {
        .tile = {.block_m = shape.block_m, .block_n = shape.block_n, .row_step = shape.row_step},
        .key_step = 1,
        .block_overhead_rows = request.sycl_kernel == SyclKernel::kPortable ? 0 : 16,
        .workers = kWorkersWithoutDevice};
  }

  /// As on Hopper; not measured on a GPU of Intel's.
  ListOrder best_order(const Plan& plan, double mean_m_blocks) const override {
    return order_for_shared_cache(plan, mean_m_blocks, 16 << 20);
  }

  std::string refuse_memory(const Device& device) const override {
    if (device.type == kDeviceOneApi) return {};
    return expected_memory("SYCL memory (USM) for the sycl backend", device) +
           "; dpnp.asarray(x) copies a host array there";
  }

  std::string refuse(const Plan& plan, const PrefillArgs& args) const override {
    return refusal(plan, args);
  }

  /// Nothing but the runtime knows when a kernel is done.
  bool holds_arrays() const override { return true; }

  std::shared_ptr<PlanMemory> make_memory() const override {
    return std::make_shared<DevicePlans>();
  }

  void check_pages(const Plan& plan, const PrefillArgs& args) const override {
    sycl::check_pages(plan, args);
  }

  void launch(const Plan& plan, const PrefillArgs& args) const override {
    sycl::launch(plan, args);
  }

  std::string refuse_merge(const MergeArgs& args) const override { return merge_refusal(args); }
  void merge(const MergeArgs& args) const override { sycl::merge(args); }

  std::string refuse_append(const AppendArgs& args) const override { return append_refusal(args); }
  void append(const AppendArgs& args) const override { sycl::append(args); }
};
constexpr SyclBackend kBackend;

}  // namespace

const BackendInterface& backend() { return kBackend; }

}  // namespace exactile::sycl
