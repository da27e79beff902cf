// src/api/prefill.cpp - checks a run's arguments against its plan, then calls the backend.
#include "api/prefill.hpp"

#include <cmath>
#include <cstdio>

#include "api/backends.hpp"
#include "api/overlap.hpp"

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

/// What is wrong with options that are numbers. Kernels multiply scores with scale * log2(e), in
/// float.
void check_options(const RunOptions& options) {
  const auto scale_log2 = static_cast<float>(options.softmax_scale * M_LOG2E);
  if (std::isnormal(scale_log2) && scale_log2 > 0) return;
  char text[32];
  std::snprintf(text, sizeof text, "%g", options.softmax_scale);
  fail(std::string("expected a finite softmax_scale > 0 that float32 holds, got ") + text);
}

}  // namespace

void check_memory(const Plan& plan, const Device& device) {
  const std::string expected = backend_of(plan.backend).refuse_memory(device);
  if (!expected.empty()) fail("expected " + expected);
}

void check_args(const Plan& plan, const PrefillArgs& args) {
  const int64_t heads_q = plan.num_heads_q, heads_kv = plan.num_heads_kv;
  const Device device = args.q.device;
  check_memory(plan, device);
  check_array(args.q, "q", {plan.total_q(), heads_q, plan.head_dim}, plan, device);
  check_array(args.k, "k", {plan.total_k(), heads_kv, plan.head_dim}, plan, device);
  check_array(args.v, "v", {plan.total_k(), heads_kv, plan.head_dim_v}, plan, device);
  check_array(args.out, "out", {plan.total_q(), heads_q, plan.head_dim_v}, plan, device);
  check_output(args);
  check_options(args.options);
  const std::string refused = backend_of(plan.backend).refuse(plan, args);
  if (!refused.empty()) fail(refused);
}

void run_plan(const Plan& plan, const PrefillArgs& args) {
  backend_of(plan.backend).launch(plan, args);
}

}  // namespace exactile
