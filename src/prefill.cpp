// src/prefill.cpp - every error that a user's arrays can cause, then the backend's launch.
#include "prefill.hpp"

#include <cmath>
#include <cstdio>

#include "cpu/launch.hpp"
#include "cuda/launch.hpp"
#include "overlap.hpp"
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

std::string to_string(const Device& device) {
  if (device.type == kDeviceCpu) return "CPU";
  return device_name(device.type) + " " + std::to_string(device.id);
}

void check_array(const ArrayRef& array, const std::string& name,
                 const std::array<int64_t, 3>& shape, const Plan& plan, const Device& device) {
  if (array.dtype != plan.dtype) {
    fail("expected " + name + " of dtype " + name_of(plan.dtype, kDtypeNames) + ", got " +
         name_of(array.dtype, kDtypeNames));
  }
  if (array.device != device) {
    fail("expected " + name + " on the device of q, " + to_string(device) + ", got " +
         to_string(array.device));
  }
  if (array.shape != shape) {
    fail("expected " + name + " of shape " + to_string(shape) + ", got " + to_string(array.shape));
  }
  if (array.has_elements() && array.strides[2] != 1) {
    fail("expected the last dimension of " + name + " to be contiguous, got a stride of " +
         std::to_string(array.strides[2]) + " elements");
  }
}

void check_device(Backend backend, const Device& device) {
  switch (backend) {
    case Backend::kCpu:
      if (device.type == kDeviceCpu) return;
      fail("expected arrays in CPU memory for the cpu backend, got them on " + to_string(device));
    case Backend::kCuda:
      if (device.type == kDeviceCuda || device.type == kDeviceCudaManaged) return;
      fail("expected arrays in CUDA memory for the cuda backend, got them on " + to_string(device));
    case Backend::kSycl:
      if (device.type == kDeviceOneApi) return;
      fail("expected arrays in SYCL memory (USM) for the sycl backend, got them on " +
           to_string(device) + "; dpnp.asarray(x) copies a host array there");
  }
}

/// In place, out = q, is safe on every backend: a row of Q is used by the tile that it belongs to
/// alone, whole before that tile's first row of O is written. (Loads of whole boxes also read rows
/// past a tile's end; what comes of these is not stored.)
void check_output(const PrefillArgs& args) {
  if (!elements_are_distinct(args.out)) {
    fail("expected strides of out that lead to every element once, got (" +
         std::to_string(args.out.strides[0]) + ", " + std::to_string(args.out.strides[1]) +
         ", 1) for shape " + to_string(args.out.shape));
  }
  const std::pair<const ArrayRef&, const char*> inputs[] = {
      {args.q, "q"}, {args.k, "k"}, {args.v, "v"}};
  for (const auto& [input, name] : inputs) {
    if (!overlap(args.out, input)) continue;
    if (&input == &args.q && is_same_array(args.out, args.q)) continue;
    fail(std::string("expected out apart from q, k and v in memory, or exactly q, got one that "
                     "overlaps ") +
         name);
  }
}

/// Kernels multiply scores with scale * log2(e), in float.
void check_scale(double scale) {
  const auto scale_log2 = static_cast<float>(scale * M_LOG2E);
  if (std::isnormal(scale_log2) && scale_log2 > 0) return;
  char text[32];
  std::snprintf(text, sizeof text, "%g", scale);
  fail(std::string("expected a finite softmax_scale > 0 that float32 holds, got ") + text);
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

std::string device_name(int type) {
  constexpr std::pair<int, const char*> kNames[] = {{1, "CPU"},
                                                    {2, "CUDA"},
                                                    {3, "CUDA host memory"},
                                                    {4, "OpenCL"},
                                                    {7, "Vulkan"},
                                                    {8, "Metal"},
                                                    {9, "VPI"},
                                                    {10, "ROCm"},
                                                    {11, "ROCm host memory"},
                                                    {12, "an extension device"},
                                                    {13, "CUDA managed memory"},
                                                    {14, "oneAPI"},
                                                    {15, "WebGPU"},
                                                    {16, "Hexagon"},
                                                    {17, "MAIA"},
                                                    {18, "Trainium"}};
  for (const auto& [number, name] : kNames) {
    if (number == type) return name;
  }
  return "DLPack device type " + std::to_string(type);
}

void check_args(const Plan& plan, const PrefillArgs& args) {
  const int64_t heads_q = plan.num_heads_q, heads_kv = plan.num_heads_kv;
  const Device device = args.q.device;
  check_device(plan.backend, device);
  check_array(args.q, "q", {plan.total_q(), heads_q, plan.head_dim}, plan, device);
  check_array(args.k, "k", {plan.total_k(), heads_kv, plan.head_dim}, plan, device);
  check_array(args.v, "v", {plan.total_k(), heads_kv, plan.head_dim_v}, plan, device);
  check_array(args.out, "out", {plan.total_q(), heads_q, plan.head_dim_v}, plan, device);
  check_output(args);
  check_scale(args.softmax_scale);
  if (plan.backend == Backend::kCpu) check_walk(plan, args.walk);
  if (plan.backend == Backend::kSycl) {
    if (const std::string refused = sycl::refusal(plan, args); !refused.empty()) fail(refused);
  }
  if (plan.backend == Backend::kCuda) {
    if (const std::string refused = cuda::refusal(args); !refused.empty()) fail(refused);
  }
}

void run_plan(const Plan& plan, const PrefillArgs& args) {
  if (plan.backend == Backend::kCpu) return cpu::launch(plan, args);
  cuda::launch(plan, args);
}

}  // namespace exactile
