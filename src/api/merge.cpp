// src/api/merge.cpp - checks what a merge is given, then calls the backend of its arrays.
#include "api/merge.hpp"

#include <algorithm>
#include <stdexcept>

#include "api/backends.hpp"
#include "api/overlap.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("merge: " + message);
}

/// That merges, and reaches the memory of a device; null: none does.
const BackendInterface* find_backend(const Device& device) {
  return exactile::find_backend(device, &BackendInterface::merges);
}

/// "(5, 4, 64)".
std::string shape_of(const ArrayRef& array, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(array.shape[i]);
  return text + ")";
}

void check_place(const ArrayRef& array, const std::string& name, Dtype dtype,
                 const MergeArgs& args) {
  if (array.dtype != dtype) {
    fail("expected " + name + " of dtype " + name_of(dtype, kDtypeNames) + ", got " +
         name_of(array.dtype, kDtypeNames));
  }
  const Device& device = args.parts[0].out.device;
  if (array.device != device) {
    fail("expected " + name + " on the device of " + args.parts[0].out_name + ", " +
         to_string(device) + ", got " + to_string(array.device));
  }
}

void check_out(const ArrayRef& out, const std::string& name, const MergeArgs& args) {
  check_place(out, name, args.dtype, args);
  const ArrayRef& first = args.parts[0].out;
  if (out.shape != first.shape) {
    fail("expected " + name + " of shape " + shape_of(first, 3) + ", got " + shape_of(out, 3));
  }
  if (out.has_elements() && out.shape[2] > 1 && out.strides[2] != 1) {
    fail("expected the last dimension of " + name + " to be contiguous, got a stride of " +
         std::to_string(out.strides[2]) + " elements");
  }
}

void check_lse(const ArrayRef& lse, const std::string& name, const MergeArgs& args) {
  check_place(lse, name, Dtype::kFloat32, args);
  const ArrayRef& first = args.parts[0].out;
  if (lse.shape[0] != first.shape[1] || lse.shape[1] != first.shape[0]) {
    fail("expected " + name + " of shape (" + std::to_string(first.shape[1]) + ", " +
         std::to_string(first.shape[0]) + "), got " + shape_of(lse, 2));
  }
}

/// Every column of a row is written when it was read in all parts, so `out` may be one of them.
void check_overlap(const MergeArgs& args) {
  if (!elements_are_distinct(args.out)) {
    fail("expected strides of out that lead to every element once, got (" +
         std::to_string(args.out.strides[0]) + ", " + std::to_string(args.out.strides[1]) +
         ", 1) for shape " + shape_of(args.out, 3));
  }
  for (const MergeArgs::Part& part : args.parts) {
    ArrayRef lse = part.lse;
    lse.rank = 3;  // rows of one element, since its strides are free
    const bool in_place = is_same_array(args.out, part.out);
    if ((in_place || !overlap(args.out, part.out)) && !overlap(args.out, lse)) continue;
    fail(
        "expected out apart from what is merged in memory, or exactly one of its results, got one "
        "that overlaps " +
        (overlap(args.out, lse) ? part.lse_name : part.out_name));
  }
}

}  // namespace

void check_merge_memory(const Device& device) {
  if (!find_backend(device)) fail("expected " + expected_memory("CPU or SYCL memory", device));
}

void check_merge(const MergeArgs& args) {
  check_merge_memory(args.parts[0].out.device);
  for (const MergeArgs::Part& part : args.parts) {
    check_out(part.out, part.out_name, args);
    check_lse(part.lse, part.lse_name, args);
  }
  check_out(args.out, "out", args);
  check_overlap(args);
  const std::string refused = find_backend(args.out.device)->refuse_merge(args);
  if (!refused.empty()) fail(refused);
}

void run_merge(const MergeArgs& args) { find_backend(args.out.device)->merge(args); }

bool merge_holds_arrays(const Device& device) { return find_backend(device)->holds_arrays(); }

}  // namespace exactile
