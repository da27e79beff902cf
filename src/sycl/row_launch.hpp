// src/sycl/row_launch.hpp - kernels that have a sub-group for each row, enqueued; and what is
// copied to the device for one launch.
#pragma once

#include <exactile/sycl/rows.hpp>
#include <memory>
#include <vector>

#include "sycl/loaded_kernels.hpp"
#include "sycl/reachable.hpp"

namespace exactile::sycl {

/// Data in a queue's device memory, freed with the last copy of this; null for no data. Returns
/// when it is there.
template <class T>
std::shared_ptr<DeviceMemory> upload(const Queue* queue, const std::vector<T>& data) {
  if (data.empty()) return nullptr;
  const RuntimeTable& table = runtime();
  DeviceMemory* memory = nullptr;
  check(table, table.make_memory(queue, data.data(), data.size() * sizeof(T), &memory));
  return {memory, table.free_memory};
}

inline void* address_of(const std::shared_ptr<DeviceMemory>& memory) {
  return runtime().address_of(memory.get());
}

/// Enqueues kernel(params, rows) and returns. Nothing to do for no row.
template <class Params>
void launch_rows(Queue* queue, const AnySpec& spec, const Params& params, Rows rows, Held held) {
  if (rows.count == 0) return;
  const RuntimeTable& table = runtime();
  const Place* place = nullptr;
  check(table, table.place_of(queue, &place));
  const auto groups = ceil_div<int64_t>(rows.count, Rows::kOfWorkGroup);
  const Launch launch{.kernel = loaded_kernel(queue, place, spec),
                      .params = &params,
                      .params_bytes = sizeof params,
                      .schedule = &rows,
                      .schedule_bytes = sizeof rows,
                      .counter = nullptr,
                      .work_groups = static_cast<std::size_t>(groups),
                      .threads = Rows::kThreads,
                      .held = new Held(std::move(held)),
                      .release = Held::release};
  check(table, table.launch(queue, &launch));
}

}  // namespace exactile::sycl
