// src/cuda/list_upload.hpp - when a plan's lists come to the device, and who waits for them.
#pragma once

#include <optional>

#include "cuda/device.hpp"

namespace exactile::cuda {

/// A state machine. Lists are written once, by a copy from the host on the stream of the first
/// launch or by a planner on the device. That stream goes on by its order; others wait for an
/// event. Not thread-safe: DevicePlans::mutex().
///
///   kOnHost -> kMarked    a launch has enqueued the copy
///   kOnHost -> kUnmarked  the planner is enqueued
///   kOnHost -> kDone      the planner is in a graph, whose own order does
///   kUnmarked -> kMarked  a launch on another stream, or the end of a plan that never ran
///   kMarked -> kDone      another stream's launch finds the event passed, or has to wait for it
class ListUpload {
 public:
  enum class State : unsigned char {
    kOnHost,    ///< nothing is enqueued
    kUnmarked,  ///< the planner is enqueued. An event after it would keep it from overlapping with
                ///< the first launch, so there is none until it is needed
    kMarked,    ///< enqueued, with an event behind it
    kDone,      ///< there, for every stream
  };

  explicit ListUpload(Device& device) : device_(device) {}

  State state() const { return state_; }

  /// The planner has been enqueued.
  void planner_enqueued(const LaunchStream& stream);

  /// What `stream` is given next finds `bytes` of the block there. The device's context is current.
  /// Throws std::invalid_argument where the planner's stream is captured and none has waited yet.
  void before_launch(const LaunchStream& stream, const Block& lists, std::size_t bytes);

  /// After the last launch: the writer's event, or null where a launch's own is later. `launched`:
  /// whether there was any. Throws std::runtime_error where there was none and the planner's stream
  /// is captured: the block is not to be used again then.
  Event last_event(bool launched);

 private:
  void copy(const LaunchStream& stream, const Block& lists, std::size_t bytes);
  void mark(Stream stream);
  void wait_on(const LaunchStream& stream);

  Device& device_;
  State state_ = State::kOnHost;
  Stream writer_ = nullptr;  // where the copy or the planner is enqueued
  std::optional<unsigned long long> writer_id_;
  Event event_ = nullptr;
};

}  // namespace exactile::cuda
