// src/cuda/page_check.cpp - see page_check.hpp.
#include "cuda/page_check.hpp"

#include <stdexcept>

#include "base/used_pages.hpp"
#include "cuda/device.hpp"

namespace exactile::cuda {
namespace {

/// As it is when the stream has come so far. The device's context is current.
void read_on(uint64_t stream, void* to, const void* from, std::size_t bytes) {
  const LaunchStream reader(reinterpret_cast<Stream>(stream));
  if (reader.capturing) {
    throw std::invalid_argument(
        "varlen_prefill: expected a stream that is not captured with EXACTILE_CHECK=1, for which "
        "the host reads block_table before a run, got one that is captured into a graph");
  }
  const Driver& driver = Driver::get();
  const RelaxedCapture relaxed;  // of other streams
  EXACTILE_DRIVER_CALL(driver, cuMemcpyDtoHAsync, to, reinterpret_cast<DevicePtr>(from), bytes,
                       reader.handle);
  EXACTILE_DRIVER_CALL(driver, cuStreamSynchronize, reader.handle);
}

}  // namespace

void check_pages(const Plan& plan, const PrefillArgs& args) {
  if (plan.launched == 0) return;
  const ContextScope scope(Device::get(args.q.device.id));
  std::vector<int32_t> seqused_k = plan.seqused_k;
  if (plan.device_lengths) {
    read_on(plan.device_lengths->stream, seqused_k.data(), plan.device_lengths->seqused_k,
            seqused_k.size() * sizeof seqused_k[0]);
  }
  check_used_pages(plan, args, seqused_k, [&](void* to, const void* from, std::size_t bytes) {
    read_on(args.options.stream, to, from, bytes);
  });
}

}  // namespace exactile::cuda
