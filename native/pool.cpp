#include "pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace foveate {
namespace {

// Some 200 microseconds: longer than what a picture has to do between two shared layers, or its
// caller between two pictures. To wake a sleeping thread for every layer took more time than many
// layers take.
constexpr int kLooks = 16000;

void rest() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// A ticket names a job and how many of its tasks nobody has begun.
std::uint64_t ticket_of(std::uint32_t job, std::uint32_t left) {
    return (std::uint64_t{job} << 32) | left;
}

std::uint32_t left_of(std::uint64_t ticket) { return static_cast<std::uint32_t>(ticket); }

}  // namespace

struct ThreadPool::State {
    std::mutex mutex;
    std::condition_variable begin;  // there are tasks, or the pool ends
    std::condition_variable end;    // the last task is done
    std::vector<std::thread> threads;
    pid_t owner = ::getpid();
    std::uint32_t job = 0;
    std::exception_ptr error;  // guarded by the mutex

    // Written by the caller before it publishes the ticket. Whoever has taken a task off a ticket
    // may read them: the caller does not go on before that task is done.
    const std::function<void(int, int)>* work = nullptr;
    int tasks = 0;
    std::atomic<int> workers{0};  // threads of the pool that may take part

    // These four are sequentially consistent: who goes to sleep says so *before* it looks for the
    // last time, who brings news looks for sleepers *after* it has told them.
    std::atomic<std::uint64_t> ticket{0};
    std::atomic<int> done{0};
    std::atomic<int> sleepers{0};
    std::atomic<bool> caller_sleeps{false};
    std::atomic<bool> closing{false};

    bool wanted(int worker) const {
        return left_of(ticket.load()) != 0 && worker <= workers.load();
    }

    // Takes tasks until there are none.
    void drain(int worker) {
        std::uint64_t seen = ticket.load();
        while (left_of(seen) != 0 && worker <= workers.load()) {
            if (!ticket.compare_exchange_weak(seen, seen - 1)) {
                continue;
            }
            const int all = tasks;
            int finished = 1;
            try {
                (*work)(all - static_cast<int>(left_of(seen)), worker);
            } catch (...) {
                const std::lock_guard lock(mutex);
                if (!error) {
                    error = std::current_exception();
                }
                // What has not begun will not begin.
                seen = ticket.load();
                while (!ticket.compare_exchange_weak(seen, seen - left_of(seen))) {
                }
                finished += static_cast<int>(left_of(seen));
            }
            if (done.fetch_add(finished) + finished == all && caller_sleeps.load()) {
                const std::lock_guard lock(mutex);
                end.notify_one();
            }
            seen = ticket.load();
        }
    }

    void serve(int worker) {
        while (!closing.load()) {
            for (int look = 0; look < kLooks && !wanted(worker) && !closing.load(); ++look) {
                rest();
            }
            if (!wanted(worker)) {
                std::unique_lock lock(mutex);
                ++sleepers;
                begin.wait(lock, [&] { return closing.load() || wanted(worker); });
                --sleepers;
            }
            drain(worker);
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
    while (state.threads.size() < static_cast<std::size_t>(helpers)) {
        const int worker = static_cast<int>(state.threads.size()) + 1;
        state.threads.emplace_back([&state, worker] { state.serve(worker); });
    }
    state.work = &work;
    state.tasks = tasks;
    state.workers = helpers;
    state.done = 0;
    state.ticket = ticket_of(++state.job, static_cast<std::uint32_t>(tasks));
    if (state.sleepers.load() != 0) {
        const std::lock_guard lock(state.mutex);
        state.begin.notify_all();
    }
    state.drain(0);
    const auto all_done = [&] { return state.done.load() == tasks; };
    for (int look = 0; look < kLooks && !all_done(); ++look) {
        rest();
    }
    std::unique_lock lock(state.mutex);
    if (!all_done()) {
        state.caller_sleeps = true;
        state.end.wait(lock, all_done);
        state.caller_sleeps = false;
    }
    if (state.error) {
        std::rethrow_exception(std::exchange(state.error, nullptr));
    }
}

}  // namespace foveate
