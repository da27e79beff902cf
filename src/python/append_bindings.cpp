// src/python/append_bindings.cpp - reads the arrays of an append and calls it.
#include "python/append_bindings.hpp"

#include "api/append.hpp"
#include "python/array_reader.hpp"
#include "python/python_threads.hpp"
#include "python/torch_arrays.hpp"

namespace nb = nanobind;

namespace exactile {
namespace {

constexpr const char* kFunction = "append_kv";

/// DLPack's device type of k_new, in whose memory is appended. `storage`: uint16 holds bfloat16.
int device(nb::handle k_new, bool storage) {
  refuse_traced(k_new, kFunction);
  const Dtype planned = storage ? Dtype::kBfloat16 : Dtype::kFloat32;
  const ArrayRef ref = ArrayReader(kFunction).read(k_new, {.name = "k_new", .planned = planned});
  check_append_memory(ref.device);
  return ref.device.type;
}

/// Reads and checks, then writes.
void append(nb::handle k_new, nb::handle v_new, nb::handle k_cache, nb::handle v_cache,
            nb::handle slots, bool storage, uint64_t stream, int threads) {
  const Dtype planned = storage ? Dtype::kBfloat16 : Dtype::kFloat32;
  ArrayReader reader(kFunction);
  const auto rows = [&](nb::handle x, const char* name) {
    return reader.read(x, {.name = name, .planned = planned});
  };
  const auto cache = [&](nb::handle x, const char* name) {
    return reader.read(x, in_pages({.name = name, .planned = planned, .writable = true}));
  };
  AppendArgs args{.k_new = rows(k_new, "k_new"),
                  .v_new = rows(v_new, "v_new"),
                  .k_cache = cache(k_cache, "k_cache"),
                  .v_cache = cache(v_cache, "v_cache"),
                  .slots = reader.read(slots, {.name = "slot_mapping",
                                               .planned = Dtype::kInt32,
                                               .rank = 1,
                                               .dims = "(num_tokens,)",
                                               .or_int64 = true}),
                  .threads = threads,
                  .stream = stream,
                  .check = check_signals};
  check_append(args);
  if (const Torch* const torch = Torch::loaded()) {
    torch->refuse_tangents({k_new, v_new, k_cache, v_cache}, kFunction);
    for (const nb::handle x : {k_cache, v_cache}) {
      if (torch->owns(x)) torch->will_write(x);
    }
  }
  const nb::list kept = reader.take();
  if (append_holds_arrays(args.k_new.device)) args.arrays = held_objects(kept);
  const GilRelease release;
  run_append(args);
}

}  // namespace

void bind_append(nb::module_& m) {
  using namespace nb::literals;
  m.def("append_device", &device, "k_new"_a, "storage"_a);
  m.def("append_kv", &append, "k_new"_a, "v_new"_a, "k_cache"_a, "v_cache"_a, "slot_mapping"_a,
        "storage"_a, "stream"_a, "threads"_a);
}

}  // namespace exactile
