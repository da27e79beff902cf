// src/python/python_threads.hpp - Python's lock, signals and objects around code that runs for
// long.
#pragma once

#include <cxxabi.h>
#include <nanobind/nanobind.h>
#include <unistd.h>

#include <memory>
#if defined(__linux__)
#include <sys/syscall.h>
#endif

namespace exactile {

/// As nanobind::gil_scoped_release, for threads that may outlive the interpreter (daemon threads):
/// Python before 3.14 ends them by pthread_exit where they ask for the lock again, and that unwinds
/// into code that must not be left so. They sleep instead, until the process ends.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

/// Runs Python's signal handlers and throws what they raise, such as KeyboardInterrupt. Python runs
/// them on its main thread, so other threads do not ask for its lock. RunExtras::check.
inline void check_signals() {
#if defined(__linux__)
  if (syscall(SYS_gettid) != getpid()) return;
#endif
  const nanobind::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
}

/// Lets arrays go once a kernel is done, on whichever thread.
inline std::shared_ptr<void> held_objects(nanobind::object objects) {
  return {objects.release().ptr(), [](void* held) {
            if (!Py_IsInitialized()) return;
            const PyGILState_STATE state = PyGILState_Ensure();
            Py_DECREF(static_cast<PyObject*>(held));
            PyGILState_Release(state);
          }};
}

}  // namespace exactile
