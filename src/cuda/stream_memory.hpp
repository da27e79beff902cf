// src/cuda/stream_memory.hpp - what a plan's launches write beside the results, counters and
// partial results, and when the last ones are over.
#pragma once

#include <vector>

#include "cuda/device.hpp"

namespace exactile::cuda {

/// What a launch is given.
struct LaunchMemory {
  DevicePtr counter;  ///< 0 where the policy needs none
  bool is_zero;       ///< else the counter has to be set to 0
  DevicePtr partial;  ///< 0 where there are no partial results
  Event last_use;     ///< to be recorded after the launch; null while capturing
};

/// A stream has a counter and partial results of its own, and so has every launch that is captured
/// into a graph: a graph may be replayed beside anything else. Launches of a shipped policy leave a
/// counter at 0, where they found it. Not thread-safe: DevicePlans::mutex().
class StreamMemory {
 public:
  /// `first`: the counter in the block of the lists, which their writer sets to 0; or 0 where the
  /// policy needs none. `leaves_zero`: the policy does. `partial_bytes`: of partial results.
  StreamMemory(Device& device, DevicePtr first, bool leaves_zero, std::size_t partial_bytes)
      : device_(device), first_(first), leaves_zero_(leaves_zero), partial_bytes_(partial_bytes) {}

  /// For the next launch on a stream.
  LaunchMemory take(const LaunchStream& stream);

  /// Whether any launch was not captured.
  bool launched() const { return !streams_.empty(); }

  /// Gives back memory, with the events that its next use has to wait for.
  void release(std::vector<Block> blocks, std::vector<Event> last_uses);

 private:
  struct StreamState {
    unsigned long long id;
    DevicePtr counter, partial;
    Event last_use;
  };
  DevicePtr new_counter();
  DevicePtr new_partial();

  Device& device_;
  const DevicePtr first_;
  const bool leaves_zero_;
  const std::size_t partial_bytes_;
  std::vector<StreamState> streams_;
  bool first_taken_ = false;   // by a stream or a captured launch
  std::vector<Block> blocks_;  // of counters, for any further one
  std::size_t used_ = 0;
  std::vector<Block> partial_blocks_;  // one for each stream and captured launch
};

}  // namespace exactile::cuda
