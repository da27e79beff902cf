// src/prefill.cpp - every error that a user's arrays can cause, then the backend's launch.
#include "prefill.hpp"

#include <cmath>

#include "cpu/launch.hpp"
#include "cuda/launch.hpp"
#include "sycl/launch.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("varlen_prefill: " + message);
}

std::string to_string(std::span<const int64_t> shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + ")";
}

void check_array(const ArrayRef& array, const std::string& name,
                 const std::array<int64_t, 3>& shape, const Plan& plan, const Device& device) {
  if (array.rank != 3) {
    fail("expected " + name + " of rank 3 (tokens, heads, head_dim), got rank " +
         std::to_string(array.rank));
  }
  if (array.dtype != plan.dtype) {
    fail("expected " + name + " of dtype " + name_of(plan.dtype, kDtypeNames) + ", got " +
         name_of(array.dtype, kDtypeNames));
  }
  if (array.device != device) {
    fail("expected " + name + " on the device of q, got device type " +
         std::to_string(array.device.type) + " id " + std::to_string(array.device.id));
  }
  if (array.shape != shape) {
    fail("expected " + name + " of shape " + to_string(shape) + ", got " + to_string(array.shape));
  }
  const bool has_elements = shape[0] > 0 && shape[1] > 0;
  if (has_elements && array.strides[2] != 1) {
    fail("expected the last dimension of " + name + " to be contiguous, got a stride of " +
         std::to_string(array.strides[2]) + " elements");
  }
}

void check_device(Backend backend, const Device& device) {
  switch (backend) {
    case Backend::kCpu:
      if (device.type == kDeviceCpu) return;
      fail("expected arrays in CPU memory for the cpu backend, got device type " +
           std::to_string(device.type));
    case Backend::kCuda:
      if (device.type == kDeviceCuda || device.type == kDeviceCudaManaged) return;
      fail("expected arrays in CUDA memory for the cuda backend, got device type " +
           std::to_string(device.type));
    case Backend::kSycl:
      if (device.type == kDeviceOneApi) return;
      fail("expected arrays in SYCL memory (USM) for the sycl backend, got device type " +
           std::to_string(device.type) + "; dpnp.asarray(x) copies a host array there");
  }
}

/// The walk's maker has checked that each tile is there once.
void check_walk(const Plan& plan, const WalkedTiles& walk) {
  if (!plan.user_scheduler) return;
  if (static_cast<int64_t>(walk.begins.size()) != plan.launched + 1 ||
      static_cast<int64_t>(walk.tiles.size()) != walk.begins.back()) {
    fail("expected the walked tiles of a Scheduler of your own");
  }
}

}  // namespace

void check_args(const Plan& plan, const PrefillArgs& args) {
  const int64_t heads_q = plan.num_heads_q, heads_kv = plan.num_heads_kv;
  const Device device = args.q.device;
  check_device(plan.backend, device);
  check_array(args.q, "q", {plan.total_q(), heads_q, plan.head_dim}, plan, device);
  check_array(args.k, "k", {plan.total_k(), heads_kv, plan.head_dim}, plan, device);
  check_array(args.v, "v", {plan.total_k(), heads_kv, plan.head_dim_v}, plan, device);
  check_array(args.out, "out", {plan.total_q(), heads_q, plan.head_dim_v}, plan, device);
  if (!std::isfinite(args.softmax_scale) || args.softmax_scale <= 0) {
    fail("expected a finite softmax_scale > 0, got " + std::to_string(args.softmax_scale));
  }
  if (plan.backend == Backend::kSycl) {
    if (const std::string refused = sycl::refusal(plan, args); !refused.empty()) fail(refused);
  }
}

void run_plan(const Plan& plan, const PrefillArgs& args) {
  check_args(plan, args);
  if (plan.backend == Backend::kCpu) {
    check_walk(plan, args.walk);
    return cpu::launch(plan, args);
  }
  if (const std::string refused = cuda::refusal(args); !refused.empty()) fail(refused);
  cuda::launch(plan, args);
}

}  // namespace exactile
