// src/cuda/rows.cpp - see rows.hpp.
#include "cuda/rows.hpp"

#include <algorithm>
#include <cstring>
#include <exactile/cuda/rows.hpp>
#include <limits>
#include <span>
#include <stdexcept>

#include "cuda/device.hpp"

namespace exactile::cuda {
namespace {

/// "expected at most ... rows", or empty: a grid has less than 2^31 blocks.
std::string refuse_rows_of_grid(int64_t rows) {
  constexpr int64_t kMost = int64_t{kRowsOfBlock} * std::numeric_limits<int32_t>::max();
  if (rows <= kMost) return {};
  return "expected at most " + std::to_string(kMost) + " rows of all heads on CUDA, got " +
         std::to_string(rows);
}

/// A copy of slots in device memory, for what is enqueued on a stream while this lives.
class UploadedSlots {
 public:
  UploadedSlots(Device& device, const std::vector<int64_t>& slots, Stream stream)
      : device_(device),
        stream_(stream),
        block_(device.acquire(std::span(slots).size_bytes())),
        done_(device.make_event()) {
    const std::size_t bytes = std::span(slots).size_bytes();
    std::memcpy(block_.host, slots.data(), bytes);
    EXACTILE_DRIVER_CALL(Driver::get(), cuMemcpyHtoDAsync, block_.device, block_.host, bytes,
                         stream);
  }
  /// The memory is used again when the stream has come so far; never, where that is not known.
  ~UploadedSlots() {
    const Driver& driver = Driver::get();
    if (driver.cuEventRecord(done_, stream_) == kSuccess) device_.release({block_}, {done_});
  }
  UploadedSlots(const UploadedSlots&) = delete;
  UploadedSlots& operator=(const UploadedSlots&) = delete;

  const int64_t* data() const { return reinterpret_cast<const int64_t*>(block_.device); }

 private:
  Device& device_;
  const Stream stream_;
  const Block block_;
  const Event done_;
};

}  // namespace

void launch_rows(Device& device, const AnySpec& spec, int64_t rows, Stream stream,
                 void** arguments) {
  if (rows == 0) return;
  const auto blocks = ceil_div<int64_t>(rows, kRowsOfBlock);
  const LoadedKernel& kernel = device.kernel(spec);
  const LaunchConfig config{.grid_x = static_cast<unsigned>(blocks),
                            .grid_y = 1,
                            .grid_z = 1,
                            .block_x = kRowThreads,
                            .block_y = 1,
                            .block_z = 1,
                            .shared_bytes = 0,
                            .stream = stream,
                            .attributes = nullptr,
                            .num_attributes = 0};
  EXACTILE_DRIVER_CALL(Driver::get(), cuLaunchKernelEx, &config, kernel.handle, arguments, nullptr);
}

std::string merge_refusal(const MergeArgs& args) {
  constexpr std::size_t kMost = MergeParams::kInline + MoreParts::kMost;
  if (args.parts.size() > kMost) {
    return "expected at most " + std::to_string(kMost) + " results on CUDA, got " +
           std::to_string(args.parts.size()) + ": merge some of them first";
  }
  return refuse_rows_of_grid(args.total_q() * args.num_heads());
}

void merge(const MergeArgs& args) {
  std::vector<MergePart> others;
  MergeParams params = merge_params(args, others);
  MoreParts more{};
  std::ranges::copy(others, more.parts);
  Device& device = Device::get(args.out.device.id);
  const ContextScope scope(device);
  void* arguments[] = {&params, &more};
  launch_rows(device, MergeSpec{args.dtype}, params.total_q * params.num_heads,
              reinterpret_cast<Stream>(args.stream), arguments);
}

std::string append_refusal(const AppendArgs& args) {
  if (args.host_slots && args.num_tokens() > 0) {
    const ContextScope scope(Device::get(args.k_new.device.id));
    if (LaunchStream(reinterpret_cast<Stream>(args.stream)).capturing) {
      return "expected slot_mapping on the GPU while its stream is captured, since a graph would "
             "read host memory anew, got it in CPU memory";
    }
  }
  return refuse_rows_of_grid(args.num_tokens() * args.num_heads());
}

void append(const AppendArgs& args) {
  if (args.num_tokens() == 0) return;
  Device& device = Device::get(args.k_new.device.id);
  const ContextScope scope(device);
  const auto stream = reinterpret_cast<Stream>(args.stream);
  std::optional<UploadedSlots> uploaded;
  if (args.host_slots) uploaded.emplace(device, *args.host_slots, stream);
  AppendParams params = append_params(args, uploaded ? uploaded->data() : nullptr);
  void* arguments[] = {&params};
  launch_rows(device, AppendSpec{args.k_new.dtype, args.k_cache.dtype},
              params.num_tokens * params.num_heads, stream, arguments);
}

}  // namespace exactile::cuda
