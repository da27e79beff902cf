// src/cuda/list_upload.cpp - the transitions of the state machine in list_upload.hpp.
#include "cuda/list_upload.hpp"

#include <stdexcept>

namespace exactile::cuda {

void ListUpload::planner_enqueued(const LaunchStream& stream) {
  state_ = stream.capturing ? State::kDone : State::kUnmarked;
  writer_ = stream.handle;
  if (!stream.capturing) writer_id_ = stream.id;
}

void ListUpload::before_launch(const LaunchStream& stream, const Block& lists, std::size_t bytes) {
  if (state_ == State::kDone || (!stream.capturing && writer_id_ == stream.id)) return;
  const RelaxedCapture relaxed;
  if (state_ == State::kOnHost) {
    copy(stream, lists, bytes);
    if (!stream.capturing) return;
  }
  if (state_ == State::kUnmarked) {
    if (LaunchStream(writer_).capturing) {
      throw std::invalid_argument(
          "varlen_prefill: expected a plan that was made in the capture or run before it, got one "
          "whose lengths are read on a stream that has been captured since: nothing outside a "
          "graph can wait for what was enqueued there");
    }
    mark(writer_);
  }
  wait_on(stream);
}

void ListUpload::copy(const LaunchStream& stream, const Block& lists, std::size_t bytes) {
  // Not into a graph: it would only happen when that is replayed.
  writer_ = stream.capturing ? device_.side_stream() : stream.handle;
  EXACTILE_DRIVER_CALL(Driver::get(), cuMemcpyHtoDAsync, lists.device, lists.host, bytes, writer_);
  mark(writer_);
  if (!stream.capturing) writer_id_ = stream.id;
}

void ListUpload::mark(Stream stream) {
  if (!event_) event_ = device_.make_event();
  EXACTILE_DRIVER_CALL(Driver::get(), cuEventRecord, event_, stream);
  state_ = State::kMarked;
}

void ListUpload::wait_on(const LaunchStream& stream) {
  const Driver& driver = Driver::get();
  if (stream.capturing) {  // a captured stream cannot wait for what happens outside its graph
    EXACTILE_DRIVER_CALL(driver, cuEventSynchronize, event_);
    state_ = State::kDone;
    return;
  }
  const Result result = driver.cuEventQuery(event_);
  if (result == kErrorNotReady) {
    EXACTILE_DRIVER_CALL(driver, cuStreamWaitEvent, stream.handle, event_, 0);
    return;
  }
  driver.check(result, "cuEventQuery");
  state_ = State::kDone;
}

Event ListUpload::last_event(bool launched) {
  if (state_ == State::kUnmarked && !launched) {
    const ContextScope scope(device_);
    if (LaunchStream(writer_).capturing) {
      throw std::runtime_error("the planner's end is not known while its stream is captured");
    }
    mark(writer_);
  }
  return event_;
}

}  // namespace exactile::cuda
