// src/sycl/append.cpp - refuses, or enqueues the kernel of an append.
#include "sycl/append.hpp"

#include "sycl/reachable.hpp"
#include "sycl/row_launch.hpp"

namespace exactile::sycl {
std::string append_refusal(const AppendArgs& args) {
  Queue* const queue = queue_at(args.stream);
  std::string refused = refuse_no_queue(queue);
  const std::pair<const char*, const ArrayRef&> arrays[] = {{"k_new", args.k_new},
                                                            {"v_new", args.v_new},
                                                            {"k_cache", args.k_cache},
                                                            {"v_cache", args.v_cache},
                                                            {"slot_mapping", args.slots}};
  for (const auto& [name, array] : arrays) {
    if (&array == &args.slots && args.host_slots) continue;
    if (refused.empty()) refused = refuse_context(queue, name, array);
  }
  return refused;
}

void append(const AppendArgs& args) {
  std::shared_ptr<DeviceMemory> uploaded;
  if (args.host_slots) uploaded = upload(queue_at(args.stream), *args.host_slots);
  const auto* const slots = uploaded ? static_cast<const int64_t*>(address_of(uploaded)) : nullptr;
  const AppendParams params = append_params(args, slots);
  launch_rows(queue_at(args.stream), AppendSpec{args.k_new.dtype, args.k_cache.dtype}, params,
              {.count = params.num_tokens * params.num_heads},
              {.arrays = args.arrays, .memory = uploaded});
}

}  // namespace exactile::sycl
