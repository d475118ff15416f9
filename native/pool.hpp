// Threads that take the tasks of one job after the other. Between the layers of a picture a thread
// looks for the next job for some 200 microseconds; then it sleeps. Nobody spins for longer: a pool
// that does collapses when it shares its cores.
#pragma once

#include <functional>
#include <memory>

namespace foveate {

constexpr int kMaxThreads = 256;

class ThreadPool {
  public:
    ThreadPool();
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Calls work(task, worker) once for every task in 0 .. tasks-1, on at most `threads` threads of
    // which the caller is one; worker is in 0 .. threads-1 and no two calls that run at the same
    // time share it. Tasks are handed out in ascending order. Returns when all are done; the first
    // exception is rethrown after the running tasks have ended, and the others are not begun.
    // Threads are made when first needed. One caller at a time.
    void run(int threads, int tasks, const std::function<void(int task, int worker)>& work);

  private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace foveate
