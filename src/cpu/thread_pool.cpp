// src/cpu/thread_pool.cpp - see thread_pool.hpp. Threads are started on first need and kept.
#include "thread_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace exactile::cpu {
namespace {

class ThreadPool {
 public:
  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void run(int threads, int64_t count, const std::function<void(int64_t)>& work_group) {
    const std::lock_guard one_job_at_a_time(job_mutex_);
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    while (static_cast<int>(threads_.size()) < helpers) {
      threads_.emplace_back([this, id = static_cast<int>(threads_.size())] { serve(id); });
    }
    next_.store(0, std::memory_order_relaxed);
    {
      const std::lock_guard lock(mutex_);
      work_group_ = &work_group;
      count_ = count;
      helpers_ = running_ = std::max(helpers, 0);
      ++job_;
    }
    if (helpers > 0) wake_.notify_all();
    take_work_groups();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void take_work_groups() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;)
      (*work_group_)(i);
  }

  void serve(int id) {
    for (int64_t seen = 0;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || (job_ != seen && id < helpers_); });
        if (stopping_) return;
        seen = job_;
      }
      take_work_groups();
      const std::lock_guard lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex job_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  const std::function<void(int64_t)>* work_group_ = nullptr;
  int64_t count_ = 0;
  int64_t job_ = 0;
  int helpers_ = 0;
  int running_ = 0;
  bool stopping_ = false;
  alignas(64) std::atomic<int64_t> next_{0};
};

/// The pool of this process. Threads do not survive a fork, so a child gets a new pool; the
/// parent's is left as it is, its locks may be held.
ThreadPool& pool() {
  static std::mutex mutex;
  static std::unique_ptr<ThreadPool> current;
  static pid_t owner = 0;
  const std::lock_guard lock(mutex);
  if (owner != getpid()) {
    (void)current.release();
    current = std::make_unique<ThreadPool>();
    owner = getpid();
  }
  return *current;
}

}  // namespace

void for_each_work_group(int threads, int64_t count,
                         const std::function<void(int64_t)>& work_group) {
  if (threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) work_group(i);
    return;
  }
  pool().run(threads, count, work_group);
}

}  // namespace exactile::cpu
