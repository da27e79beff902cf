// src/api/prefill.cpp - checks a run's arguments against its plan, then calls the backend.
#include "api/prefill.hpp"

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "api/array_checks.hpp"
#include "api/backends.hpp"

namespace exactile {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw std::invalid_argument("varlen_prefill: " + message);
}

void fail_if(const std::string& refused) {
  if (!refused.empty()) fail(refused);
}

/// What a dimension has to be; any other size than `least` only where `or_more`.
struct Size {
  int64_t least;
  bool or_more = false;

  Size(int64_t size) : least(size) {}
  static Size at_least(int64_t size) {
    Size least = size;
    least.or_more = true;
    return least;
  }
  bool fits(int64_t size) const { return or_more ? size >= least : size == least; }
};

/// "(5 or more, 4, 64)".
std::string to_string(std::span<const Size> sizes) {
  std::string text = "(";
  for (const Size& size : sizes) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size.least);
    text += size.or_more ? " or more" : "";
  }
  return text + (sizes.size() == 1 ? ",)" : ")");
}

struct Expected {
  const char* name;
  Dtype dtype;
  Device device;
};

void check_array(const ArrayRef& array, const Expected& expected,
                 std::initializer_list<Size> shape) {
  const std::string name = expected.name;
  fail_if(refuse_dtype(array, name, expected.dtype));
  fail_if(refuse_device(array, name, expected.device, "q"));
  const auto fits = [](const Size& size, int64_t given) { return size.fits(given); };
  if (!std::ranges::equal(shape, shape_of(array), fits)) {
    fail("expected " + name + " of shape " + to_string({shape.begin(), shape.size()}) + ", got " +
         shape_text(shape_of(array)));
  }
  fail_if(refuse_rows(array, name));
}

/// In place, out = q, is safe on every backend: a row of Q is used by the tile that it belongs to
/// alone, whole before that tile's first row of O is written. (Loads of whole boxes also read rows
/// past a tile's end; what comes of these is not stored.)
void check_output(const PrefillArgs& args) {
  fail_if(refuse_shared_elements(args.out, "out"));
  const auto check_apart = [&](const ArrayRef& input, const char* name) {
    if (!overlap(args.out, input)) return;
    if (&input == &args.q && is_same_array(args.out, args.q)) return;
    fail(std::string("expected out apart from q, k and v in memory, or exactly q, got one that "
                     "overlaps ") +
         name);
  };
  check_apart(args.q, "q");
  check_apart(args.k, "k");
  check_apart(args.v, "v");
  const RunOptions& options = args.options;
  if (options.sinks) check_apart(*options.sinks, "sinks");
  if (options.alibi_slopes) check_apart(*options.alibi_slopes, "alibi_slopes");
  if (options.block_table) check_apart(*options.block_table, "block_table");
}

/// What is wrong with options that are numbers. Kernels multiply scores with scale * log2(e), in
/// float.
void check_numbers(const RunOptions& options) {
  const auto is_float = [](double x) {
    return std::isnormal(static_cast<float>(x)) && static_cast<float>(x) > 0;
  };
  const auto text_of = [](double x) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", x);
    return std::string(text);
  };
  if (!is_float(options.softmax_scale * M_LOG2E)) {
    fail("expected a finite softmax_scale > 0 that float32 holds, got " +
         text_of(options.softmax_scale));
  }
  if (options.softcap == 0) return;
  if (!is_float(options.softcap / options.softmax_scale) ||
      !is_float(options.softmax_scale / options.softcap)) {
    fail("expected a finite softcap >= 0 that float32 holds, over softmax_scale too, got " +
         text_of(options.softcap));
  }
}

void check_options(const Plan& plan, const RunOptions& options, const Device& device) {
  check_numbers(options);
  const auto of_heads = [&](const std::optional<ArrayRef>& array, const char* name) {
    if (!array) return;
    const Expected expected{.name = name, .dtype = Dtype::kFloat32, .device = device};
    if (array->rank == 2) {
      check_array(*array, expected, {plan.batch(), plan.num_heads_q});
    } else {
      check_array(*array, expected, {plan.num_heads_q});
    }
  };
  of_heads(options.sinks, "sinks");
  of_heads(options.alibi_slopes, "alibi_slopes");
  if (plan.is_paged() != options.block_table.has_value()) {
    fail(plan.is_paged() ? "expected block_table with a plan of page_size=" +
                               std::to_string(plan.page_size) + ", got none"
                         : "expected no block_table with a plan without page_size, got one");
  }
  if (plan.is_paged()) {
    check_array(*options.block_table,
                {.name = "block_table", .dtype = Dtype::kInt32, .device = device},
                {plan.batch(), Size::at_least(ceil_div(plan.max_len_k, plan.page_size))});
  }
}

/// EXACTILE_CHECK, read once. Not a static of the function: a process that forks meanwhile
/// would leave the guard of that locked in its child.
bool is_check_asked_for() {
  static constinit std::atomic<int> known{-1};
  if (known < 0) {
    const char* const wanted = std::getenv("EXACTILE_CHECK");
    const std::string_view text = wanted ? wanted : "";
    if (!text.empty() && text != "0" && text != "1") {
      throw std::invalid_argument("EXACTILE_CHECK: expected 0 or 1, got '" + std::string(text) +
                                  "'");
    }
    known = text == "1";
  }
  return known > 0;
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
  const auto expected = [&](const char* name) -> Expected {
    return {.name = name, .dtype = plan.dtype, .device = device};
  };
  check_array(args.q, expected("q"), {Size::at_least(plan.total_q()), heads_q, plan.head_dim});
  if (plan.is_paged()) {
    const Size pages = Size::at_least(plan.max_len_k > 0 ? 1 : 0);
    check_array(args.k, expected("k"), {pages, plan.page_size, heads_kv, plan.head_dim});
    check_array(args.v, expected("v"),
                {args.k.shape[0], plan.page_size, heads_kv, plan.head_dim_v});
    if (args.k.shape[0] > std::numeric_limits<int32_t>::max()) {
      fail("expected less than 2^31 pages, got " + std::to_string(args.k.shape[0]));
    }
  } else {
    const Size keys = Size::at_least(plan.total_k());
    check_array(args.k, expected("k"), {keys, heads_kv, plan.head_dim});
    check_array(args.v, expected("v"), {keys, heads_kv, plan.head_dim_v});
  }
  check_array(args.out, expected("out"), {args.q.shape[0], heads_q, plan.head_dim_v});
  check_options(plan, args.options, device);
  check_output(args);
  fail_if(backend_of(plan.backend).refuse(plan, args));
}

void run_plan(const Plan& plan, const PrefillArgs& args) {
  const BackendInterface& backend = backend_of(plan.backend);
  if (plan.is_paged() && is_check_asked_for()) backend.check_pages(plan, args);
  backend.launch(plan, args);
}

}  // namespace exactile
