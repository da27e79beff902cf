// src/python/merge_bindings.cpp - reads the arrays of a merge and calls it.
#include "python/merge_bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "api/merge.hpp"
#include "python/array_reader.hpp"
#include "python/python_threads.hpp"
#include "python/torch_arrays.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

constexpr const char* kFunction = "merge";

/// What a result may be: `dtype` as the caller said, or "".
ArrayRequest result_request(const char* name, const std::string& dtype) {
  const Dtype planned =
      dtype.empty() ? Dtype::kFloat32 : from_name<Dtype>(dtype, kDtypeNames, "merge: dtype");
  return {.name = name, .planned = planned};
}

ArrayRequest lse_request(const char* name) {
  return {.name = name, .planned = Dtype::kFloat32, .rank = 2, .dims = "(num_heads, total_q)"};
}

/// (shape, dtype, DLPack's device type) of the first result. `dtype`: as the caller said, or "".
nb::tuple info(nb::handle x, const std::string& name, const std::string& dtype) {
  refuse_traced(x, kFunction);
  const ArrayRef ref = ArrayReader(kFunction).read(x, result_request(name.c_str(), dtype));
  check_merge_memory(ref.device);
  return nb::make_tuple(nb::make_tuple(ref.shape[0], ref.shape[1], ref.shape[2]),
                        name_of(ref.dtype, kDtypeNames), ref.device.type);
}

/// Reads and checks, then computes. `names`: of results and log-sum-exps, in turn. `lse`: made for
/// this call, or None. `dtype`: as the caller said, or that of the first result.
void merge(const std::vector<std::string>& names, nb::list outs, nb::list lses, nb::handle out,
           nb::handle lse, const std::string& dtype, uint64_t stream, bool out_is_callers,
           int threads) {
  ArrayReader reader(kFunction);
  MergeArgs args{
      .parts = {},
      .dtype = from_name<Dtype>(dtype, kDtypeNames, "merge: dtype"),
      .out = {},
      .threads = threads,
      .stream = stream,
      .check = check_signals,
  };
  for (std::size_t i = 0; i < outs.size(); ++i) {
    const std::string &out_name = names[2 * i], &lse_name = names[2 * i + 1];
    args.parts.push_back({.out_name = out_name,
                          .lse_name = lse_name,
                          .out = reader.read(outs[i], result_request(out_name.c_str(), dtype)),
                          .lse = reader.read(lses[i], lse_request(lse_name.c_str()))});
  }
  ArrayRequest written = result_request("out", dtype);
  written.writable = true;
  args.out = reader.read(out, written);
  if (!lse.is_none()) args.lse = static_cast<float*>(reader.read(lse, lse_request("lse")).data);
  check_merge(args);
  if (const Torch* const torch = Torch::loaded()) {
    for (const nb::handle x : outs) torch->refuse_tangents({x}, kFunction);
    for (const nb::handle x : lses) torch->refuse_tangents({x}, kFunction);
    if (out_is_callers && torch->owns(out)) torch->will_write(out);
  }
  nb::list kept = reader.take();
  if (merge_holds_arrays(args.out.device)) args.arrays = held_objects(kept);
  const GilRelease release;
  run_merge(args);
}

}  // namespace

void bind_merge(nb::module_& m) {
  using namespace nb::literals;
  m.def("merge_info", &info, "x"_a, "name"_a, "dtype"_a);
  m.def("merge", &merge, "names"_a, "outs"_a, "lses"_a, "out"_a, "lse"_a.none(), "dtype"_a,
        "stream"_a, "out_is_callers"_a, "threads"_a);
}

}  // namespace exactile
