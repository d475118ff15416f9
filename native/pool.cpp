#include "pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace foveate {
namespace {

// About 20 microseconds, the time that a sleeping thread takes to wake: whoever waits for the next
// layer of the same picture looks that long before it sleeps, and no longer.
constexpr int kLooks = 2000;

void rest() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace

struct ThreadPool::State {
    std::mutex mutex;
    std::condition_variable begin;  // there are tasks, or the pool ends
    std::condition_variable end;    // the last worker has left the job
    std::vector<std::thread> threads;
    pid_t owner = ::getpid();
    bool closing = false;

    // The job; guarded by the mutex. Tasks are convolution rows and the like, long enough that one
    // lock a task costs nothing that can be measured.
    const std::function<void(int, int)>* work = nullptr;
    int next = 0;
    int tasks = 0;
    int workers = 0;  // threads of the pool that may take part
    std::atomic<int> busy{0};           // ... that are inside the job now; written with the lock
    std::atomic<unsigned> announced{0};  // jobs so far; a hint for whoever looks without the lock
    std::exception_ptr error;

    // Takes tasks until there are none; called and returns with the lock held.
    void drain(std::unique_lock<std::mutex>& lock, int worker) {
        while (next < tasks) {
            const int task = next++;
            lock.unlock();
            std::exception_ptr caught;
            try {
                (*work)(task, worker);
            } catch (...) {
                caught = std::current_exception();
            }
            lock.lock();
            if (caught) {
                next = tasks;
                if (!error) {
                    error = caught;
                }
            }
        }
    }

    // A thread joins a job only while tasks are left: the caller never waits for one that has not
    // been scheduled yet.
    void serve(int worker) {
        std::unique_lock lock(mutex);
        for (;;) {
            if (!closing && next >= tasks) {
                const unsigned seen = announced.load();
                lock.unlock();
                for (int look = 0; look < kLooks && announced.load() == seen; ++look) {
                    rest();
                }
                lock.lock();
            }
            begin.wait(lock, [&] { return closing || (next < tasks && worker <= workers); });
            if (closing) {
                return;
            }
            ++busy;
            drain(lock, worker);
            if (--busy == 0) {
                end.notify_one();
            }
        }
    }
};

ThreadPool::ThreadPool() : state_(std::make_unique<State>()) {}

ThreadPool::~ThreadPool() {
    if (state_->owner != ::getpid()) {
        // After a fork the threads exist in the parent only; they cannot be joined here.
        static_cast<void>(state_.release());
        return;
    }
    {
        const std::lock_guard lock(state_->mutex);
        state_->closing = true;
    }
    state_->begin.notify_all();
    for (std::thread& thread : state_->threads) {
        thread.join();
    }
}

void ThreadPool::run(int threads, int tasks, const std::function<void(int, int)>& work) {
    if (threads < 1 || threads > kMaxThreads) {
        throw std::runtime_error("threads must be 1 to " + std::to_string(kMaxThreads) + ", got " +
                                 std::to_string(threads));
    }
    const int helpers = std::min(threads, tasks) - 1;
    if (helpers <= 0) {
        for (int task = 0; task < tasks; ++task) {
            work(task, 0);
        }
        return;
    }
    if (state_->owner != ::getpid()) {
        // A forked child starts with new threads; the old state belongs to threads that are gone.
        static_cast<void>(state_.release());
        state_ = std::make_unique<State>();
    }
    State& state = *state_;
    std::unique_lock lock(state.mutex);
    while (state.threads.size() < static_cast<std::size_t>(helpers)) {
        const int worker = static_cast<int>(state.threads.size()) + 1;
        state.threads.emplace_back([&state, worker] { state.serve(worker); });
    }
    state.work = &work;
    state.next = 0;
    state.tasks = tasks;
    state.workers = helpers;
    state.error = nullptr;
    ++state.announced;
    state.begin.notify_all();
    state.drain(lock, 0);
    if (state.busy.load() != 0) {
        lock.unlock();
        for (int look = 0; look < kLooks && state.busy.load() != 0; ++look) {
            rest();
        }
        lock.lock();
    }
    state.end.wait(lock, [&] { return state.busy.load() == 0; });
    if (state.error) {
        std::rethrow_exception(std::exchange(state.error, nullptr));
    }
}

}  // namespace foveate
