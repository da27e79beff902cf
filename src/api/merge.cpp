// src/api/merge.cpp - checks what a merge is given, then calls the backend of its arrays.
#include "api/merge.hpp"

#include <algorithm>
#include <stdexcept>

#include "api/array_checks.hpp"
#include "api/backends.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("merge: " + message);
}

void fail_if(const std::string& refused) {
  if (!refused.empty()) fail(refused);
}

void check_place(const ArrayRef& array, const std::string& name, Dtype dtype,
                 const MergeArgs& args) {
  const MergeArgs::Part& first = args.parts[0];
  fail_if(refuse_dtype(array, name, dtype));
  fail_if(refuse_device(array, name, first.out.device, first.out_name));
}

void check_out(const ArrayRef& out, const std::string& name, const MergeArgs& args) {
  check_place(out, name, args.dtype, args);
  const ArrayRef& first = args.parts[0].out;
  if (out.shape != first.shape) {
    fail("expected " + name + " of shape " + shape_text(shape_of(first)) + ", got " +
         shape_text(shape_of(out)));
  }
  fail_if(refuse_rows(out, name));
}

void check_lse(const ArrayRef& lse, const std::string& name, const MergeArgs& args) {
  check_place(lse, name, Dtype::kFloat32, args);
  const ArrayRef& first = args.parts[0].out;
  if (lse.shape[0] != first.shape[1] || lse.shape[1] != first.shape[0]) {
    fail("expected " + name + " of shape (" + std::to_string(first.shape[1]) + ", " +
         std::to_string(first.shape[0]) + "), got " + shape_text(shape_of(lse)));
  }
}

/// Every column of a row is written when it was read in all parts, so `out` may be one of them.
void check_overlap(const MergeArgs& args) {
  fail_if(refuse_shared_elements(args.out, "out"));
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
  const std::string refused = refuse_memory(device);
  if (!refused.empty()) fail("expected " + refused);
}

void check_merge(const MergeArgs& args) {
  check_merge_memory(args.parts[0].out.device);
  for (const MergeArgs::Part& part : args.parts) {
    check_out(part.out, part.out_name, args);
    check_lse(part.lse, part.lse_name, args);
  }
  check_out(args.out, "out", args);
  check_overlap(args);
  fail_if(find_backend(args.out.device)->refuse_merge(args));
}

void run_merge(const MergeArgs& args) { find_backend(args.out.device)->merge(args); }

bool merge_holds_arrays(const Device& device) { return find_backend(device)->holds_arrays(); }

}  // namespace exactile
