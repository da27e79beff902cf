// src/api/append.cpp - checks what is appended to a cache, then calls the backend of its arrays.
#include "api/append.hpp"

#include <algorithm>
#include <stdexcept>

#include "api/array_checks.hpp"
#include "api/backends.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("append_kv: " + message);
}

void fail_if(const std::string& refused) {
  if (!refused.empty()) fail(refused);
}

void check_array(const ArrayRef& array, const std::string& name, const ArrayRef& first,
                 std::initializer_list<int64_t> shape) {
  fail_if(refuse_device(array, name, first.device, "k_new"));
  if (!std::ranges::equal(shape_of(array), shape)) {
    fail("expected " + name + " of shape " + shape_text({shape.begin(), shape.size()}) + ", got " +
         shape_text(shape_of(array)));
  }
  fail_if(refuse_rows(array, name));
}

void check_dtype(const ArrayRef& array, const std::string& name, const ArrayRef& as,
                 const std::string& whose) {
  if (array.dtype == as.dtype) return;
  fail("expected " + name + " of the dtype of " + whose + ", " + name_of(as.dtype, kDtypeNames) +
       ", got " + name_of(array.dtype, kDtypeNames));
}

void check_cache(const ArrayRef& cache, const std::string& name, const AppendArgs& args) {
  fail_if(refuse_shared_elements(cache, name));
  const std::pair<const ArrayRef&, const char*> inputs[] = {
      {args.k_new, "k_new"}, {args.v_new, "v_new"}, {args.slots, "slot_mapping"}};
  for (const auto& [input, input_name] : inputs) {
    if (!overlap(cache, input)) continue;
    fail("expected " + name + " apart from what is appended in memory, got one that overlaps " +
         input_name);
  }
}

/// Slots in CPU memory, each of them there or negative. A copy, since another thread may write the
/// caller's.
std::vector<int64_t> checked_slots(const AppendArgs& args) {
  std::vector<int64_t> slots(args.num_tokens());
  const int64_t stride = args.slots.strides[0], end = args.num_slots();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto at = static_cast<int64_t>(i) * stride;
    slots[i] = args.slots.dtype == Dtype::kInt64 ? static_cast<const int64_t*>(args.slots.data)[at]
                                                 : static_cast<const int32_t*>(args.slots.data)[at];
    if (slots[i] < end) continue;
    fail("expected slot_mapping below " + std::to_string(end) +
         ", the rows of all pages (negative: none), got " + std::to_string(slots[i]) +
         " at index " + std::to_string(i));
  }
  return slots;
}

}  // namespace

void check_append_memory(const Device& device) {
  const std::string refused = refuse_memory(device);
  if (!refused.empty()) fail("expected " + refused);
}

void check_append(AppendArgs& args) {
  check_append_memory(args.k_new.device);
  const ArrayRef& k = args.k_new;
  const int64_t tokens = k.shape[0], heads = k.shape[1];
  const int64_t pages = args.k_cache.shape[0], page_size = args.k_cache.shape[1];
  check_array(k, "k_new", k, {tokens, heads, k.shape[2]});
  check_array(args.v_new, "v_new", k, {tokens, heads, args.v_new.shape[2]});
  check_dtype(args.v_new, "v_new", k, "k_new");
  check_array(args.k_cache, "k_cache", k, {pages, page_size, heads, k.shape[2]});
  check_array(args.v_cache, "v_cache", k, {pages, page_size, heads, args.v_new.shape[2]});
  check_dtype(args.v_cache, "v_cache", args.k_cache, "k_cache");
  if (page_size == 0) fail("expected pages of at least one row, got a page size of 0");
  if (args.slots.shape[0] != tokens) {
    fail("expected slot_mapping of shape (" + std::to_string(tokens) + ",), got (" +
         std::to_string(args.slots.shape[0]) + ",)");
  }
  const bool on_host = args.slots.device.type == kDeviceCpu;
  if (!on_host && args.slots.device != k.device) {
    fail("expected slot_mapping in CPU memory or on the device of k_new, " + to_string(k.device) +
         ", got " + to_string(args.slots.device));
  }
  check_cache(args.k_cache, "k_cache", args);
  check_cache(args.v_cache, "v_cache", args);
  if (on_host) args.host_slots = checked_slots(args);
  fail_if(find_backend(k.device)->refuse_append(args));
}

void run_append(const AppendArgs& args) { find_backend(args.k_new.device)->append(args); }

bool append_holds_arrays(const Device& device) { return find_backend(device)->holds_arrays(); }

}  // namespace exactile
