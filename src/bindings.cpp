// src/bindings.cpp - the only file that knows Python: arrays and names in, Plan out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu/launch.hpp"
#include "plan.hpp"
#include "prefill.hpp"
#include "support.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

using Lengths = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Input = nb::ndarray<nb::ro>;
using Lse = nb::ndarray<float, nb::ndim<2>, nb::c_contig>;

/// uint16 is taken as the storage of bfloat16 where the plan is for that: numpy has no bfloat16.
Dtype dtype_of(nb::dlpack::dtype dtype, Dtype planned, const char* name) {
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(Code::Float, 32)) return Dtype::kFloat32;
  if (is(Code::Float, 16)) return Dtype::kFloat16;
  if (is(Code::Bfloat, 16)) return Dtype::kBfloat16;
  if (is(Code::UInt, 16) && planned == Dtype::kBfloat16) return Dtype::kBfloat16;
  throw std::invalid_argument(std::string("varlen_prefill: expected ") + name +
                              " of dtype float32, float16 or bfloat16, got DLPack code " +
                              std::to_string(dtype.code) + " with " + std::to_string(dtype.bits) +
                              " bits");
}

template <class Array>
ArrayRef array_ref(const Array& array, Dtype planned, const char* name) {
  ArrayRef ref{
      .data = const_cast<void*>(static_cast<const void*>(array.data())),
      .shape = {},
      .strides = {},
      .rank = static_cast<int>(array.ndim()),
      .dtype = dtype_of(array.dtype(), planned, name),
      .device = {array.device_type(), array.device_id()},
  };
  for (int i = 0; i < std::min(ref.rank, 3); ++i) {
    ref.shape[i] = static_cast<int64_t>(array.shape(i));
    ref.strides[i] = array.stride(i);
  }
  return ref;
}

std::span<const int32_t> span_of(const Lengths& lengths) {
  return {lengths.data(), lengths.shape(0)};
}

Plan plan(const Lengths& cu_seqlens_q, const Lengths& cu_seqlens_k, int64_t num_heads_q,
          int64_t num_heads_kv, int64_t head_dim, int64_t head_dim_v, const std::string& dtype,
          std::pair<int64_t, int64_t> window, const std::optional<std::string>& scheduler,
          const std::optional<std::string>& order, std::optional<bool> pack_gqa,
          const std::string& backend, int workers) {
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
      .order = {},
      .backend = from_name<Backend>(backend, kBackendNames, "plan: backend"),
      .workers = workers,
  };
  if (scheduler) {
    request.scheduler = from_name<SchedulerKind>(*scheduler, kSchedulerNames, "plan: scheduler");
  }
  if (order) request.order = from_name<ListOrder>(*order, kOrderNames, "plan: order");
  nb::gil_scoped_release release;
  return make_plan(request);
}

void run(const Plan& plan, const Input& q, const Input& k, const Input& v, nb::ndarray<> out,
         const std::optional<Lse>& lse, double softmax_scale) {
  const PrefillArgs args{
      .q = array_ref(q, plan.dtype, "q"),
      .k = array_ref(k, plan.dtype, "k"),
      .v = array_ref(v, plan.dtype, "v"),
      .out = array_ref(out, plan.dtype, "out"),
      .lse = lse ? lse->data() : nullptr,
      .softmax_scale = softmax_scale,
  };
  nb::gil_scoped_release release;
  run_plan(plan, args);
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
      .def_prop_ro("scheduler", [](const Plan& p) { return name_of(p.scheduler, kSchedulerNames); })
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
           "out"_a.noconvert(), "lse"_a.noconvert().none(), "softmax_scale"_a);
  m.def("plan", &plan, "cu_seqlens_q"_a.noconvert(), "cu_seqlens_k"_a.noconvert(), nb::kw_only(),
        "num_heads_q"_a, "num_heads_kv"_a, "head_dim"_a, "head_dim_v"_a, "dtype"_a, "window"_a,
        "scheduler"_a.none(), "order"_a.none(), "pack_gqa"_a.none(), "backend"_a, "workers"_a);
  m.def("isa", &cpu::isa);
  m.def("available_isas", &cpu::available_isas);
  m.def("hardware_threads", &cpu::hardware_threads);
  m.def("support", &support);
  m.attr("DTYPES") = names(kDtypeNames);
  m.attr("SCHEDULERS") = names(kSchedulerNames);
  m.attr("ORDERS") = names(kOrderNames);
  m.attr("BACKENDS") = names(kBackendNames);
}
