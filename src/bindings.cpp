// src/bindings.cpp - arrays and names in, Plan out. With arrays.cpp the only code that knows
// Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "arrays.hpp"
#include "cpu/launch.hpp"
#include "cuda/bindings.hpp"
#include "cuda/kernels.hpp"
#include "cuda/launch.hpp"
#include "jit/bindings.hpp"
#include "plan.hpp"
#include "prefill.hpp"
#include "support.hpp"
#include "sycl/bindings.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

using Lengths = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<nb::ro>;
/// Name, source, and the shipped policy whose Params it takes.
using UserSchedulerFields = std::tuple<std::string, std::string, std::string>;
/// Addresses of cu_seqlens_q and cu_seqlens_k, device, stream.
using DeviceLengthFields = std::tuple<uint64_t, uint64_t, int, uint64_t>;
using Lse = nb::ndarray<float, nb::ndim<2>, nb::c_contig>;

std::span<const int32_t> span_of(const Lengths& lengths) {
  return {lengths.data(), lengths.shape(0)};
}

Plan plan(const Lengths& cu_seqlens_q, const Lengths& cu_seqlens_k, int64_t num_heads_q,
          int64_t num_heads_kv, int64_t head_dim, int64_t head_dim_v, const std::string& dtype,
          std::pair<int64_t, int64_t> window, const std::optional<std::string>& scheduler,
          const std::optional<std::string>& order, std::optional<bool> pack_gqa,
          std::optional<bool> pack_sequences, const std::string& backend,
          std::optional<int> workers, const std::optional<UserSchedulerFields>& user_scheduler,
          const std::optional<DeviceLengthFields>& device_lengths, const std::string& sycl_kernel) {
  // A window side beyond any sequence is no bound.
  const auto side = [](int64_t size) {
    return size > std::numeric_limits<int32_t>::max()
               ? -1
               : static_cast<int32_t>(std::max<int64_t>(size, -2));
  };
  PlanRequest request{
      .cu_seqlens_q = span_of(cu_seqlens_q),
      .cu_seqlens_k = span_of(cu_seqlens_k),
      .num_heads_q = num_heads_q,
      .num_heads_kv = num_heads_kv,
      .head_dim = head_dim,
      .head_dim_v = head_dim_v,
      .dtype = from_name<Dtype>(dtype, kDtypeNames, "plan: dtype"),
      .mask = {.left = side(window.first), .right = side(window.second)},
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
    const auto& [cu_q, cu_k, device, stream] = *device_lengths;
    request.device_lengths = {.cu_seqlens_q = reinterpret_cast<const int32_t*>(cu_q),
                              .cu_seqlens_k = reinterpret_cast<const int32_t*>(cu_k),
                              .device = device,
                              .stream = stream};
  }
  if (order) request.order = from_name<ListOrder>(*order, kOrderNames, "plan: order");
  Plan made = [&] {
    nb::gil_scoped_release release;
    return make_plan(request);
  }();
  jit::warn_of_cache();
  return made;
}

void run(const Plan& plan, const Input& q, const Input& k, const Input& v, nb::ndarray<> out,
         const std::optional<Lse>& lse, double softmax_scale, uint64_t stream) {
  const PrefillArgs args{
      .q = array_ref(q, plan.dtype, "q"),
      .k = array_ref(k, plan.dtype, "k"),
      .v = array_ref(v, plan.dtype, "v"),
      .out = array_ref(out, plan.dtype, "out"),
      .lse = lse ? lse->data() : nullptr,
      .softmax_scale = softmax_scale,
      .stream = stream,
  };
  {
    nb::gil_scoped_release release;
    run_plan(plan, args);
  }
  jit::warn_of_cache();
}

/// As `run`, for torch tensors on a GPU. `lse`, `timeline`: addresses in its memory, or 0.
void run_torch(const Plan& plan, nb::handle q, nb::handle k, nb::handle v, nb::handle out,
               uint64_t lse, double softmax_scale, uint64_t stream, uint64_t timeline,
               int64_t timeline_bytes) {
  const PrefillArgs args{
      .q = torch_array_ref(q, "q"),
      .k = torch_array_ref(k, "k"),
      .v = torch_array_ref(v, "v"),
      .out = torch_array_ref(out, "out"),
      .lse = reinterpret_cast<float*>(lse),
      .softmax_scale = softmax_scale,
      .stream = stream,
      .timeline = reinterpret_cast<void*>(timeline),
      .timeline_bytes = timeline_bytes,
  };
  {
    nb::gil_scoped_release release;
    run_plan(plan, args);
  }
  jit::warn_of_cache();
}

/// (n,) or (n, 4) int32 view of memory that the plan owns.
template <class... Shape>
auto view(nb::handle owner, const void* data, Shape... shape) {
  return nb::ndarray<nb::numpy, const int32_t>(static_cast<const int32_t*>(data),
                                               {static_cast<std::size_t>(shape)...}, owner);
}

nb::list support() {
  nb::list rows;
  for (const SupportRow& row : support_rows()) {
    rows.append(nb::make_tuple(name_of(row.backend, kBackendNames), name_of(row.dtype, kDtypeNames),
                               row.head_dim, row.head_dim_v));
  }
  return rows;
}

template <std::size_t kSize>
nb::tuple names(const char* const (&values)[kSize]) {
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
      .def_prop_ro("cu_seqlens_q",
                   [](nb::handle_t<Plan> self) {
                     const auto& cu = nb::cast<const Plan&>(self).cu_seqlens_q;
                     return view(self, cu.data(), cu.size());
                   })
      .def_prop_ro("cu_seqlens_k",
                   [](nb::handle_t<Plan> self) {
                     const auto& cu = nb::cast<const Plan&>(self).cu_seqlens_k;
                     return view(self, cu.data(), cu.size());
                   })
      .def_prop_ro("records",
                   [](nb::handle_t<Plan> self) {
                     const auto& plan = nb::cast<const Plan&>(self);
                     return view(self, plan.records.get(), plan.records ? plan.num_records : 0, 4);
                   })
      .def("run", &run, "q"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
           "out"_a.noconvert(), "lse"_a.noconvert().none(), "softmax_scale"_a, "stream"_a = 0)
      .def("run_torch", &run_torch, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a, "softmax_scale"_a,
           "stream"_a, "timeline"_a = 0, "timeline_bytes"_a = 0)
      .def_prop_ro("timeline_bytes", &cuda::timeline_bytes);
  m.def("plan", &plan, "cu_seqlens_q"_a.noconvert(), "cu_seqlens_k"_a.noconvert(), nb::kw_only(),
        "num_heads_q"_a, "num_heads_kv"_a, "head_dim"_a, "head_dim_v"_a, "dtype"_a, "window"_a,
        "scheduler"_a.none(), "order"_a.none(), "pack_gqa"_a.none(), "pack_sequences"_a.none(),
        "backend"_a, "workers"_a.none(), "user_scheduler"_a.none() = nb::none(),
        "device_lengths"_a.none() = nb::none(), "sycl_kernel"_a = kSyclKernelNames[0]);
  m.def("isa", &cpu::isa);
  m.def("available_isas", &cpu::available_isas);
  m.def("hardware_threads", &cpu::hardware_threads);
  m.def("support", &support);
  jit::bind(m);
  cuda::bind(m);
  sycl::bind(m);
  m.attr("DTYPES") = names(kDtypeNames);
  m.attr("SCHEDULERS") = names(kSchedulerNames);
  m.attr("ORDERS") = names(kOrderNames);
  m.attr("BACKENDS") = names(kBackendNames);
}
