// src/python/bindings.cpp - the module: arrays and names in, Plan out. Of the
// core, src/python/ alone includes Python's and nanobind's headers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "api/backends.hpp"
#include "api/planner.hpp"
#include "api/prefill.hpp"
#include "base/policies.hpp"
#include "base/result_memory.hpp"
#include "base/support.hpp"
#include "cpu/launch.hpp"
#include "cpu/thread_pool.hpp"
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "python/append_bindings.hpp"
#include "python/arrays.hpp"
#include "python/cuda_bindings.hpp"
#include "python/jit_bindings.hpp"
#include "python/merge_bindings.hpp"
#include "python/python_threads.hpp"
#include "python/run_options.hpp"
#include "python/sycl_bindings.hpp"
#include "python/torch_arrays.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

using Lengths = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
/// Name, source, and the shipped policy whose Params it takes.
using UserSchedulerFields = std::tuple<std::string, std::string, std::string>;
/// Addresses of cu_seqlens_q, cu_seqlens_k, seqused_q and seqused_k (0: none), device, stream.
using DeviceLengthFields = std::tuple<uint64_t, uint64_t, uint64_t, uint64_t, int, uint64_t>;
/// WalkedTiles.
using WalkFields = std::tuple<Lengths, Lengths>;

std::span<const int32_t> span_of(const Lengths& lengths) {
  return {lengths.data(), lengths.shape(0)};
}

Plan plan(const Lengths& cu_seqlens_q, const Lengths& cu_seqlens_k, int64_t num_heads_q,
          int64_t num_heads_kv, int64_t head_dim, int64_t head_dim_v, const std::string& dtype,
          std::pair<int32_t, int32_t> window, const std::optional<std::string>& scheduler,
          const std::optional<std::string>& order, std::optional<bool> pack_gqa,
          std::optional<bool> pack_sequences, const std::string& backend,
          std::optional<int> workers, const std::optional<Lengths>& seqused_q,
          const std::optional<Lengths>& seqused_k, int64_t page_size,
          std::optional<int32_t> max_len_k,
          const std::optional<UserSchedulerFields>& user_scheduler,
          const std::optional<DeviceLengthFields>& device_lengths, const std::string& sycl_kernel,
          std::optional<int32_t> work_groups, std::optional<int32_t> num_splits) {
  PlanRequest request{
      .cu_seqlens_q = span_of(cu_seqlens_q),
      .cu_seqlens_k = span_of(cu_seqlens_k),
      .seqused_q = seqused_q ? span_of(*seqused_q) : std::span<const int32_t>{},
      .seqused_k = seqused_k ? span_of(*seqused_k) : std::span<const int32_t>{},
      .page_size = page_size,
      .max_len_k = max_len_k,
      .num_heads_q = num_heads_q,
      .num_heads_kv = num_heads_kv,
      .head_dim = head_dim,
      .head_dim_v = head_dim_v,
      .dtype = from_name<Dtype>(dtype, kDtypeNames, "plan: dtype"),
      .mask = {.left = window.first, .right = window.second},
      .scheduler = {},
      .pack_gqa = pack_gqa,
      .pack_sequences = pack_sequences,
      .order = {},
      .backend = from_name<Backend>(backend, kBackendNames, "plan: backend"),
      .sycl_kernel = from_name<SyclKernel>(sycl_kernel, kSyclKernelNames, "EXACTILE_SYCL_KERNEL"),
      .workers = workers,
  };
  if (scheduler) {
    request.scheduler = from_name<SchedulerKind>(*scheduler, kSchedulerNames, "plan: scheduler");
  }
  if (user_scheduler) {
    const auto& [name, source, like] = *user_scheduler;
    request.scheduler = from_name<SchedulerKind>(like, kSchedulerNames, "Scheduler: like");
    request.user_scheduler = std::make_shared<UserScheduler>(
        UserScheduler{.name = name, .source = source, .like = *request.scheduler});
  }
  if (device_lengths) {
    const auto& [cu_q, cu_k, used_q, used_k, device, stream] = *device_lengths;
    request.device_lengths = {.cu_seqlens_q = reinterpret_cast<const int32_t*>(cu_q),
                              .cu_seqlens_k = reinterpret_cast<const int32_t*>(cu_k),
                              .seqused_q = reinterpret_cast<const int32_t*>(used_q),
                              .seqused_k = reinterpret_cast<const int32_t*>(used_k),
                              .device = device,
                              .stream = stream};
  }
  request.work_groups = work_groups;
  request.num_splits = num_splits;
  if (order) request.order = from_name<ListOrder>(*order, kOrderNames, "plan: order");
  Plan made = [&] {
    const GilRelease release;
    return make_plan(request);
  }();
  jit::warn_of_cache();
  return made;
}

ArrayRequest kv_request(const char* name, const Plan& plan) {
  const ArrayRequest packed{.name = name, .planned = plan.dtype};
  return plan.is_paged() ? in_pages(packed) : packed;
}

/// Reads and checks, then computes. `lse`: float32, contiguous, made for this call; or None.
/// `options`: for read_options(). `out_is_callers`: not made for this call. Returns None, or the
/// rows of q where what was made for this call has others: nothing is computed then. What follows
/// is for tests: `timeline`, an address in a GPU's memory, or 0; `work_groups`, of two int32 in
/// USM, to which a SYCL kernel adds counts of work-groups launched and of tiles with work, or 0.
std::optional<int64_t> run(const Plan& plan, nb::handle q, nb::handle k, nb::handle v,
                           nb::handle out, nb::handle lse, nb::handle options, uint64_t stream,
                           bool out_is_callers, const std::optional<WalkFields>& walk,
                           uint64_t timeline, int64_t timeline_bytes, uint64_t work_groups) {
  const Torch* const torch = Torch::loaded();
  if (torch && torch->owns(q)) torch->refuse_tracing("varlen_prefill");
  const Array arrays[] = {
      read_array(q, {.name = "q", .planned = plan.dtype}),
      read_array(k, kv_request("k", plan)),
      read_array(v, kv_request("v", plan)),
      read_array(out, {.name = "out", .planned = plan.dtype, .writable = true}),
  };
  ReadOptions read = read_options(plan, options);
  PrefillArgs args{
      .q = arrays[0].ref,
      .k = arrays[1].ref,
      .v = arrays[2].ref,
      .out = arrays[3].ref,
      .options = std::move(read.options),
      .extras = {.timeline = reinterpret_cast<void*>(timeline),
                 .timeline_bytes = timeline_bytes,
                 .work_groups = reinterpret_cast<int32_t*>(work_groups),
                 .check = check_signals,
                 .walk = walk ? WalkedTiles{.begins = span_of(std::get<0>(*walk)),
                                            .tiles = span_of(std::get<1>(*walk))}
                              : WalkedTiles{}},
  };
  args.options.stream = stream;
  Array lse_array{.ref = {}, .keep = {}};
  if (!lse.is_none()) {
    lse_array =
        read_array(lse, {.name = "lse", .planned = Dtype::kFloat32, .rank = 2, .writable = true});
    args.options.lse = static_cast<float*>(lse_array.ref.data);
  }
  const int64_t rows = args.q.shape[0];
  if (rows > plan.total_q() && ((!out_is_callers && args.out.shape[0] != rows) ||
                                (args.options.lse && lse_array.ref.shape[1] != rows))) {
    return rows;
  }
  check_args(plan, args);
  if (torch) torch->refuse_tangents({q, k, v, out});
  if (torch && out_is_callers && torch->owns(out)) torch->will_write(out);
  if (backend_of(plan.backend).holds_arrays()) {
    nb::list held;
    for (const nb::handle array : {q, k, v, out, lse}) held.append(array);
    for (const Array& array : arrays) {  // a capsule may hold a copy of its own
      if (array.keep.is_valid()) held.append(array.keep);
    }
    if (lse_array.keep.is_valid()) held.append(lse_array.keep);
    for (const nb::object& array : read.keep) held.append(array);
    args.extras.arrays = held_objects(held);
  }
  {
    const GilRelease release;
    run_plan(plan, args);
  }
  jit::warn_of_cache();
  return std::nullopt;
}

/// Raises for an array whose memory the plan's backend does not reach.
void check_memory_of(const Plan& plan, nb::handle q) {
  check_memory(plan, read_array(q, {.name = "q", .planned = plan.dtype}).ref.device);
}

/// (shape, dtype, DLPack's device type) of q, k or v. `storage`: of uint16, or "". `paged`: of rank
/// 4.
nb::tuple array_info(nb::handle x, const std::string& name, const std::string& storage,
                     bool paged) {
  refuse_traced(x, "varlen_prefill");
  const Dtype planned =
      storage.empty() ? Dtype::kFloat32 : from_name<Dtype>(storage, kDtypeNames, "dtype");
  const ArrayRequest packed{.name = name.c_str(), .planned = planned};
  const ArrayRef ref = read_array(x, paged ? in_pages(packed) : packed).ref;
  nb::list shape;
  for (int i = 0; i < ref.rank; ++i) shape.append(ref.shape[i]);
  return nb::make_tuple(nb::tuple(shape), name_of(ref.dtype, kDtypeNames), ref.device.type);
}

void refuse_tracing(const char* function) {
  if (const Torch* const torch = Torch::loaded()) torch->refuse_tracing(function);
}

/// (n,) or (n, 4) int32 view of memory that the plan owns.
template <class... Shape>
auto view(nb::handle owner, const void* data, Shape... shape) {
  return nb::ndarray<nb::numpy, const int32_t>(static_cast<const int32_t*>(data),
                                               {static_cast<std::size_t>(shape)...}, owner);
}

template <auto kLengths>
auto lengths_of(nb::handle_t<Plan> self) {
  const std::vector<int32_t>& lengths = nb::cast<const Plan&>(self).*kLengths;
  return view(self, lengths.data(), lengths.size());
}

/// Uninitialised memory for a result, as bytes.
nb::ndarray<nb::numpy, uint8_t> result_memory(int64_t bytes) {
  ResultBlock* const block = take_result_block(bytes);
  const nb::capsule owner(
      block, [](void* p) noexcept { give_back_result_block(static_cast<ResultBlock*>(p)); });
  return {block->data, {static_cast<std::size_t>(bytes)}, owner};
}

nb::list support() {
  nb::list rows;
  for (const SupportRow& row : support_rows()) {
    rows.append(nb::make_tuple(name_of(row.backend, kBackendNames), name_of(row.dtype, kDtypeNames),
                               row.head_dim, row.head_dim_v));
  }
  return rows;
}

nb::tuple names(std::span<const char* const> values) {
  nb::list list;
  for (const char* value : values) list.append(value);
  return nb::tuple(list);
}

}  // namespace
}  // namespace exactile

NB_MODULE(_core, m) {
  using namespace exactile;
  using namespace nb::literals;
  nb::class_<Plan>(m, "Plan")
      .def_prop_ro("scheduler",
                   [](const Plan& p) {
                     return p.user_scheduler ? p.user_scheduler->name
                                             : name_of(p.scheduler, kSchedulerNames);
                   })
      .def_prop_ro("policy", [](const Plan& p) { return name_of(p.scheduler, kSchedulerNames); })
      .def_prop_ro("has_list", [](const Plan& p) { return has_list(p.scheduler); })
      .def_prop_ro("has_counter", [](const Plan& p) { return has_counter(p.scheduler); })
      .def_prop_ro("user_scheduler",
                   [](const Plan& p) -> std::optional<UserSchedulerFields> {
                     if (!p.user_scheduler) return std::nullopt;
                     const UserScheduler& own = *p.user_scheduler;
                     return UserSchedulerFields{own.name, own.source,
                                                name_of(own.like, kSchedulerNames)};
                   })
      .def_prop_ro("order", [](const Plan& p) { return name_of(p.order, kOrderNames); })
      .def_prop_ro("backend", [](const Plan& p) { return name_of(p.backend, kBackendNames); })
      .def_prop_ro("dtype", [](const Plan& p) { return name_of(p.dtype, kDtypeNames); })
      .def_ro("num_heads_q", &Plan::num_heads_q)
      .def_ro("num_heads_kv", &Plan::num_heads_kv)
      .def_ro("head_dim", &Plan::head_dim)
      .def_ro("head_dim_v", &Plan::head_dim_v)
      .def_prop_ro("window",
                   [](const Plan& p) { return nb::make_tuple(p.mask.left, p.mask.right); })
      .def_ro("pack_gqa", &Plan::pack_gqa)
      .def_prop_ro("pack_sequences", [](const Plan& p) { return p.packed_len > 0; })
      .def_prop_ro("sycl_kernel",
                   [](const Plan& p) { return name_of(p.sycl_kernel, kSyclKernelNames); })
      .def_ro("page_size", &Plan::page_size)
      .def_ro("num_splits", &Plan::num_splits)
      .def_prop_ro("num_split_tiles",
                   [](const Plan& p) { return p.split_tiles.size() * p.tile_heads; })
      .def_ro("workers", &Plan::workers)
      .def_ro("block_m", &Plan::block_m)
      .def_ro("block_n", &Plan::block_n)
      .def_ro("tile_tokens", &Plan::tile_tokens)
      .def_ro("tile_heads", &Plan::tile_heads)
      .def_ro("max_m_blocks", &Plan::max_m_blocks)
      .def_ro("num_records", &Plan::num_records)
      .def_ro("valid", &Plan::valid)
      .def_ro("launched", &Plan::launched)
      .def_ro("pairs", &Plan::pairs)
      .def_ro("flops", &Plan::flops)
      .def_ro("bytes", &Plan::bytes)
      .def_ro("planning_us", &Plan::planning_us)
      .def_prop_ro("batch", &Plan::batch)
      .def_prop_ro("total_q", &Plan::total_q)
      .def_prop_ro("total_k", &Plan::total_k)
      .def_prop_ro("cu_seqlens_q", &lengths_of<&Plan::cu_seqlens_q>)
      .def_prop_ro("cu_seqlens_k", &lengths_of<&Plan::cu_seqlens_k>)
      .def_prop_ro("seqused_q", &lengths_of<&Plan::seqused_q>)  // empty: all count
      .def_prop_ro("seqused_k", &lengths_of<&Plan::seqused_k>)
      .def_prop_ro("records",
                   [](nb::handle_t<Plan> self) {
                     const auto& plan = nb::cast<const Plan&>(self);
                     return view(self, plan.records.get(), plan.records ? plan.num_records : 0, 4);
                   })
      .def_prop_ro("splits",  // for tests: KeySplit of every record
                   [](nb::handle_t<Plan> self) {
                     const auto& plan = nb::cast<const Plan&>(self);
                     return view(self, plan.splits.data(), plan.splits.size(), 4);
                   })
      .def("run", &run, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a.none() = nb::none(),
           "options"_a = nb::dict(), "stream"_a = 0, "out_is_callers"_a = true,
           "walk"_a.none() = nb::none(), "timeline"_a = 0, "timeline_bytes"_a = 0,
           "work_groups"_a = 0)
      .def("check_memory", &check_memory_of, "q"_a)
      .def_prop_ro("timeline_bytes", &cuda::timeline_bytes);
  m.def("plan", &plan, "cu_seqlens_q"_a.noconvert(), "cu_seqlens_k"_a.noconvert(), nb::kw_only(),
        "num_heads_q"_a, "num_heads_kv"_a, "head_dim"_a, "head_dim_v"_a, "dtype"_a, "window"_a,
        "scheduler"_a.none(), "order"_a.none(), "pack_gqa"_a.none(), "pack_sequences"_a.none(),
        "backend"_a, "workers"_a.none(), "seqused_q"_a.noconvert().none() = nb::none(),
        "seqused_k"_a.noconvert().none() = nb::none(), "page_size"_a = 0,
        "max_len_k"_a.none() = nb::none(), "user_scheduler"_a.none() = nb::none(),
        "device_lengths"_a.none() = nb::none(), "sycl_kernel"_a = kSyclKernelNames[0],
        "work_groups"_a.none() = nb::none(), "num_splits"_a.none() = nb::none());
  m.def("array_info", &array_info, "x"_a, "name"_a, "storage"_a = "", "paged"_a = false);
  m.def("refuse_tracing", &refuse_tracing, "function"_a);
  m.def("suspend_compiler", &suspend_compiler);
  m.def("resume_compiler", &resume_compiler, "hook"_a);
  m.def("device_name", &device_name, "dlpack_type"_a);
  m.def("isa", &cpu::isa);
  m.def("available_isas", &cpu::available_isas);
  m.attr("MAX_THREADS") = cpu::kMaxThreads;
  m.def("hardware_threads", &cpu::hardware_threads);
  m.def("result_memory", &result_memory);
  m.def("kept_result_bytes", &kept_result_bytes);
  m.def("empty_result_cache", &empty_result_cache);
  m.def("support", &support);
  bind_arrays(m);
  bind_merge(m);
  bind_append(m);
  jit::bind(m);
  cuda::bind(m);
  sycl::bind(m);
  m.attr("MAX_TOKENS") = kMostTokens;
  m.attr("DTYPES") = names(std::span(kDtypeNames).first<kNumDtypes>());
  m.attr("SCHEDULERS") = names(kSchedulerNames);
  m.attr("ORDERS") = names(kOrderNames);
  m.attr("BACKENDS") = names(kBackendNames);
}
