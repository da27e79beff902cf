// tests/cpp/test_cuda_serving.cpp - lengths on a GPU that say which rows and keys count, and pages,
// with a fake driver: parameters of the planner and of the kernels, the planner's records, and the
// check of page numbers.
#include <algorithm>
#include <cstring>
#include <exactile/cuda/params.hpp>
#include <exactile/cuda/planner_params.hpp>
#include <optional>
#include <vector>

#include "check.hpp"
#include "cuda/launch.hpp"
#include "cuda/page_check.hpp"
#include "cuda/plan_memory.hpp"
#include "cuda_plan.hpp"
#include "fake_driver.hpp"
#include "jit/cache.hpp"

namespace exactile {

jit::Found jit::find(const Program& /*program*/, Search /*search*/) {
  return {.binary = std::make_shared<Binary>(), .origin = Origin::kCompiler};
}

static bool operator==(const TileRecord& a, const TileRecord& b) {
  return a.q_begin == b.q_begin && a.q_end == b.q_end && a.k_begin == b.k_begin &&
         a.k_len == b.k_len;
}

namespace test {
namespace {

constexpr int32_t kPageSize = 16, kMaxLenK = 100;

/// In the memory of the fake GPU. The last sequence's used lengths exceed its length.
struct Lengths {
  std::vector<int32_t> cu_q{0, 5, 5, 205}, cu_k{0, 40, 47, 347};
  std::vector<int32_t> used_q{3, 0, 500}, used_k{39, -1, 900};
};

Plan make_plan(const Lengths& lengths, bool paged, Stream stream) {
  Plan plan = plan_of_one_head();
  plan.cu_seqlens_q = {0, 70, 140, 210};  // stand-ins
  plan.cu_seqlens_k = {0, kMaxLenK, 2 * kMaxLenK, 3 * kMaxLenK};
  plan.page_size = paged ? kPageSize : 0;
  plan.order = ListOrder::kLongestFirst;
  if (paged) plan.seqused_k.assign(3, kMaxLenK);
  plan.max_len_k = kMaxLenK;
  plan.num_records = plan.launched = 4;
  plan.device_lengths = {.cu_seqlens_q = lengths.cu_q.data(),
                         .cu_seqlens_k = paged ? nullptr : lengths.cu_k.data(),
                         .seqused_q = lengths.used_q.data(),
                         .seqused_k = lengths.used_k.data(),
                         .device = 0,
                         .stream = reinterpret_cast<uint64_t>(stream)};
  return plan;
}

ArrayRef array_of(std::initializer_list<int64_t> shape, Dtype dtype) {
  alignas(16) static std::byte memory[1];
  ArrayRef array{.data = memory,
                 .rank = static_cast<int>(shape.size()),
                 .shape = {1, 1, 1, 1},
                 .strides = {1, 1, 1, 1},
                 .dtype = dtype,
                 .device = {kDeviceCuda, 0}};
  std::ranges::copy(shape, array.shape.begin());
  for (int i = array.rank - 2; i >= 0; --i) {
    array.strides[i] = array.strides[i + 1] * array.shape[i + 1];
  }
  return array;
}

PrefillArgs make_args(const Plan& plan, Stream stream) {
  const ArrayRef rows = array_of({210, 1, 64}, plan.dtype);
  const ArrayRef keys = plan.is_paged() ? array_of({8, kPageSize, 1, 64}, plan.dtype)
                                        : array_of({347, 1, 64}, plan.dtype);
  PrefillArgs args{.q = rows, .k = keys, .v = keys, .out = rows, .options = {}};
  if (plan.is_paged()) args.options.block_table = array_of({3, 7}, Dtype::kInt32);
  args.options.stream = reinterpret_cast<uint64_t>(stream);
  return args;
}

/// The records of sequences as the planner makes them of `params`, against the planner's of the
/// host, which sees the same lengths, clamped to their sequences.
void check_records(const PlannerParams& params, const Lengths& lengths, bool paged) {
  std::vector<int32_t> within_q, within_k;
  for (std::size_t b = 0; b < lengths.used_q.size(); ++b) {
    const int32_t most_k = paged ? kMaxLenK : lengths.cu_k[b + 1] - lengths.cu_k[b];
    within_q.push_back(std::clamp(lengths.used_q[b], 0, lengths.cu_q[b + 1] - lengths.cu_q[b]));
    within_k.push_back(std::clamp(lengths.used_k[b], 0, std::min(most_k, kMaxLenK)));
  }
  const ScheduleMemory host{.cu_seqlens_q = lengths.cu_q.data(),
                            .cu_seqlens_k = paged ? nullptr : lengths.cu_k.data(),
                            .seqused_q = within_q.data(),
                            .seqused_k = within_k.data(),
                            .records = nullptr};
  for (int32_t b = 0; b < params.spec.batch; ++b) {
    const TileRecord got = planned_sequence(params, b), want = sequence_record(host, b);
    EXACTILE_CHECK(got == want, "sequence " << b << ", paged " << paged << ": rows " << got.q_begin
                                            << " to " << got.q_end << ", " << got.k_len << " keys");
  }
}

void check_used_lengths_on_the_device(bool paged) {
  StreamTag stream{"s1"};
  const Lengths lengths;
  const Plan plan = make_plan(lengths, paged, &stream);
  std::optional<PlannerParams> planner;
  std::optional<PrefillParams> kernel;
  gpu.on_launch = [&](const LaunchConfig&, void** arguments) {
    if (!planner) {
      planner = *static_cast<const PlannerParams*>(arguments[0]);
    } else {
      kernel = *static_cast<const PrefillParams*>(arguments[3]);  // behind the tensor maps
    }
  };
  enqueue_planner(plan);
  cuda::launch(plan, make_args(plan, &stream));
  gpu.on_launch = nullptr;
  EXACTILE_CHECK(planner && kernel, "launches");
  if (!planner || !kernel) return;
  EXACTILE_CHECK(planner->spec.batch == 3 && planner->max_records == 4, planner->max_records);
  EXACTILE_CHECK(planner->max_len_k == kMaxLenK, planner->max_len_k);
  check_records(*planner, lengths, paged);
  EXACTILE_CHECK(kernel->cu_seqlens_q == lengths.cu_q.data(), "cu_seqlens_q");
  EXACTILE_CHECK(kernel->cu_seqlens_k == (paged ? nullptr : lengths.cu_k.data()), "cu_seqlens_k");
  EXACTILE_CHECK(kernel->pages.page_size == (paged ? kPageSize : 0), kernel->pages.page_size);
  EXACTILE_CHECK(kernel->pages.num_pages == (paged ? 8 : 0), kernel->pages.num_pages);
}

/// A table of 7 columns in rows `stride` entries apart; its sequences use 3, 0 and 7 of these.
struct Table {
  std::vector<int32_t> entries;
  int64_t stride;

  explicit Table(int64_t row_stride)
      : entries(7 + 2 * std::abs(row_stride), -1), stride(row_stride) {
    for (int32_t column = 0; column < 3; ++column) at(0, column) = column;
    for (int32_t column = 0; column < 7; ++column) at(2, column) = column + 1;
  }
  int32_t* data() { return entries.data() + (stride < 0 ? -2 * stride : 0); }
  int32_t& at(int32_t row, int32_t column) { return data()[row * stride + column]; }
};

/// What was asked of the driver, and the error.
std::string checked(const Plan& plan, Table& table, StreamTag& stream) {
  PrefillArgs args = make_args(plan, &stream);
  args.options.block_table->data = table.data();
  args.options.block_table->strides[0] = table.stride;
  gpu.take_notes();
  try {
    check_pages(plan, args);
  } catch (const std::invalid_argument& error) {
    return gpu.take_notes() + error.what();
  }
  return gpu.take_notes();
}

std::string no_page(int32_t number, int32_t row, int32_t column) {
  return "varlen_prefill: expected block_table of pages from 0 to 7, of which k and v have 8, "
         "got " +
         std::to_string(number) + " at index (" + std::to_string(row) + ", " +
         std::to_string(column) + ")";
}

void expect(const std::string& got, const std::string& expected) {
  EXACTILE_CHECK(got == expected, "\n  got      " << got << "\n  expected " << expected);
}

/// The lengths are read where they were planned, the table where it is used.
void check_page_numbers_of_tables() {
  StreamTag s1{"s1"}, s2{"s2"};
  const Lengths lengths;
  const Plan on_gpu = make_plan(lengths, true, &s1);
  Plan on_host = make_plan(lengths, true, nullptr);
  on_host.device_lengths.reset();
  on_host.seqused_k = {39, 0, 100};
  for (const int64_t stride : {7, 9, -8}) {
    Table table(stride);
    expect(checked(on_gpu, table, s2), "read s1; sync s1; read s2; sync s2; ");
    expect(checked(on_host, table, s2), "read s2; sync s2; ");
    table.at(2, 6) = 8;
    expect(checked(on_gpu, table, s2), "read s1; sync s1; read s2; sync s2; " + no_page(8, 2, 6));
    table.at(0, 2) = -1;
    expect(checked(on_host, table, s2), "read s2; sync s2; " + no_page(-1, 0, 2));
  }
}

/// Nothing waits for a stream that is captured: neither the table's nor the planner's.
void check_page_numbers_in_a_capture() {
  StreamTag s1{"s1"}, s2{"s2"}, graph{"graph", true};
  const Lengths lengths;
  const Plan plan = make_plan(lengths, true, &s1);
  Table table(7);
  const std::string refused =
      "varlen_prefill: expected a stream that is not captured with EXACTILE_CHECK=1, ";
  EXACTILE_CHECK(checked(plan, table, graph).starts_with("read s1; sync s1; " + refused), "run");
  s1.capturing = true;
  EXACTILE_CHECK(checked(plan, table, s2).starts_with(refused), "planner");
}

}  // namespace
}  // namespace test
}  // namespace exactile

int main() {
  using namespace exactile::test;
  for (const bool paged : {false, true}) check_used_lengths_on_the_device(paged);
  check_page_numbers_of_tables();
  check_page_numbers_in_a_capture();
  return report();
}
