//! Limits under a clock that jumps to the next timer.

use super::*;
use crate::SystemClock;
use futures_util::future::LocalBoxFuture;
use ovs_units::{ByteOffset, Rates};
use tokio::task::spawn_local;

const MIB: u64 = 1 << 20;
/// A discard of a whole cluster.
const ZERO: GuestRequest = GuestRequest::Zero(ByteRange { start: ByteOffset(4096), length: ByteCount(4096) });

fn run(case: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}

/// A thread that is busy: every timer is this late.
struct BusyClock(SystemClock, Duration);

impl Clock for BusyClock {
    fn now(&self) -> Duration {
        self.0.now()
    }

    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    fn sleep(&self, duration: Duration) -> LocalBoxFuture<'static, ()> {
        self.0.sleep(duration + self.1)
    }
}

fn limiter(limits: Limits) -> Rc<Limiter> {
    late_limiter(limits, Duration::ZERO)
}

fn late_limiter(limits: Limits, late: Duration) -> Rc<Limiter> {
    let limiter = Limiter::new(Rc::new(BusyClock(SystemClock::new(), late)));
    limiter.set(limits);
    Rc::new(limiter)
}

fn iops(iops: u64) -> Rates {
    Rates { iops: Some(iops), ..Rates::default() }
}

fn bytes(bytes_per_s: u64) -> Rates {
    Rates { bytes_per_s: Some(bytes_per_s), ..Rates::default() }
}

fn total(rates: Rates) -> Limits {
    Limits { total: rates, ..Limits::default() }
}

fn write(bytes: u64) -> GuestRequest {
    GuestRequest::Write(ByteCount(bytes))
}

fn read(bytes: u64) -> GuestRequest {
    GuestRequest::Read(ByteCount(bytes))
}

/// Guests that always have `depth` requests of a kind under way. Counts those that have gone on.
fn load(limiter: &Rc<Limiter>, request: GuestRequest, depth: u64) -> Rc<Cell<u64>> {
    let done = Rc::new(Cell::new(0_u64));
    for _ in 0..depth {
        let (limiter, done) = (limiter.clone(), done.clone());
        spawn_local(async move {
            loop {
                limiter.turn(request).await;
                done.set(done.get() + 1);
            }
        });
    }
    done
}

async fn seconds(count: f64) {
    tokio::time::sleep(Duration::from_secs_f64(count)).await;
}

#[track_caller]
fn within_5_percent(found: u64, expected: f64, what: impl std::fmt::Debug) {
    let off = (found as f64 - expected).abs() / expected;
    assert!(off <= 0.05, "{what:?}: {found} instead of {expected}, {:.1} % off", 100.0 * off);
}

/// As many requests as the limits allow in the time.
async fn check_rate(limits: Limits, request: GuestRequest, depth: u64, per_s: f64, late: Duration) {
    let limiter = late_limiter(limits, late);
    let done = load(&limiter, request, depth);
    let time = (200.0 / per_s).max(2.0).max(50.0 * late.as_secs_f64());
    seconds(time).await;
    within_5_percent(done.get(), per_s * time, (limits.total, request, depth, late));
}

#[test]
fn rates_hold_at_every_depth() {
    for rate in [10, 100, 1000, 7777, 50_000] {
        for depth in [1, 4, 64] {
            run(check_rate(total(iops(rate)), write(4096), depth, rate as f64, Duration::ZERO));
            run(check_rate(total(iops(rate)), ZERO, depth, rate as f64, Duration::ZERO));
        }
    }
}

#[test]
fn bandwidth_holds_for_every_size() {
    for rate in [MIB, 10 * MIB, 1000 * MIB] {
        for size in [4096, 64 << 10, MIB, 4 * MIB] {
            for depth in [1, 64] {
                let per_s = rate as f64 / size as f64;
                run(check_rate(total(bytes(rate)), read(size), depth, per_s, Duration::ZERO));
            }
        }
    }
}

#[test]
fn a_busy_thread_costs_no_rate() {
    for (depth, late_ms) in [(1, 5), (1, 15), (64, 15), (64, 200)] {
        let late = Duration::from_millis(late_ms);
        let depth = if late_ms > 100 { 16 * depth } else { depth };
        run(check_rate(total(iops(2000)), write(4096), depth, 2000.0, late));
    }
}

#[test]
fn each_of_several_limits_holds() {
    run(async {
        let limits = Limits { total: iops(1000), read: iops(200), write: bytes(MIB), burst_s: None };
        let limiter = limiter(limits);
        let reads = load(&limiter, read(4096), 8);
        let writes = load(&limiter, write(4096), 8);
        seconds(10.0).await;
        within_5_percent(reads.get(), 2000.0, "reads");
        within_5_percent(writes.get(), 2560.0, "writes");
    });
    run(async {
        let limiter = limiter(Limits { total: iops(300), read: iops(200), ..Limits::default() });
        let reads = load(&limiter, read(4096), 8);
        let writes = load(&limiter, write(4096), 8);
        seconds(10.0).await;
        within_5_percent(reads.get() + writes.get(), 3000.0, "both");
        assert!(writes.get() > 1000 && reads.get() > 1000, "{} writes, {} reads", writes.get(), reads.get());
    });
}

#[test]
fn reads_do_not_wait_for_writes_that_wait() {
    run(async {
        let limiter = limiter(Limits { write: iops(1), ..Limits::default() });
        let writes = load(&limiter, write(4096), 4);
        seconds(0.5).await;
        let start = tokio::time::Instant::now();
        for _ in 0..1000 {
            limiter.turn(read(4096)).await;
        }
        assert_eq!((start.elapsed(), writes.get()), (Duration::ZERO, 1));
    });
    // Nor when they have a limit of their own, and the writes came first.
    run(async {
        let limiter = limiter(Limits { read: iops(100), write: iops(1), ..Limits::default() });
        load(&limiter, write(4096), 4);
        let reads = load(&limiter, read(4096), 4);
        seconds(10.0).await;
        within_5_percent(reads.get(), 1000.0, "reads");
    });
}

#[test]
fn a_burst_lasts_as_long_as_it_says_and_comes_back() {
    run(async {
        let rates = Rates { iops_burst: Some(1000), ..iops(100) };
        let limiter = limiter(Limits { burst_s: Some(10), ..total(rates) });
        let done = load(&limiter, write(4096), 16);
        let mut last = 0;
        for (time, expected) in [(5.0, 5000.0), (4.5, 4500.0), (1.0, 550.0), (20.0, 2000.0)] {
            seconds(time).await;
            within_5_percent(done.get() - last, expected, time);
            last = done.get();
        }
    });
    // 18 MiB are saved up at 1 MiB a second.
    run(async {
        let rates = Rates { bytes_per_s_burst: Some(10 * MIB), ..bytes(MIB) };
        let limiter = limiter(Limits { burst_s: Some(2), ..total(rates) });
        for rest in [0.0, 18.0, 9.0] {
            seconds(rest).await;
            let start = tokio::time::Instant::now();
            let size = if rest == 9.0 { 10 } else { 20 };
            for _ in 0..size {
                limiter.turn(read(MIB)).await;
            }
            let took = start.elapsed().as_secs_f64();
            let expected = size as f64 / 10.0;
            assert!((expected - 0.15..expected + 0.01).contains(&took), "{rest}: {took}");
        }
    });
}

#[test]
fn a_large_request_passes_and_those_behind_it_pay() {
    run(async {
        let limiter = limiter(total(bytes(MIB)));
        let start = tokio::time::Instant::now();
        limiter.turn(write(32 * MIB)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        limiter.turn(ZERO).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "it has no bytes");
        limiter.turn(write(4096)).await;
        let took = start.elapsed();
        assert!(took > Duration::from_secs(31) && took <= Duration::from_secs(32), "{took:?}");
    });
}

#[test]
fn who_waits_goes_on_in_order() {
    run(async {
        let limiter = limiter(total(iops(50)));
        let order = Rc::new(RefCell::new(Vec::new()));
        for number in 0..100 {
            let (limiter, order) = (limiter.clone(), order.clone());
            spawn_local(async move {
                let request = if number % 3 == 0 { read(MIB) } else { write(4096) };
                limiter.turn(request).await;
                order.borrow_mut().push(number);
            });
        }
        seconds(3.0).await;
        assert_eq!(*order.borrow(), (0..100).collect::<Vec<_>>());
        let Throttled { requests, waited } = limiter.throttled();
        // 98 of them at 50 a second wait 1 s on average.
        assert!((97..=99).contains(&requests), "{requests}");
        assert!((90..=105).contains(&waited.as_secs()), "{waited:?}");
    });
}

#[test]
fn a_change_is_for_those_who_wait_as_well() {
    run(async {
        let limiter = limiter(total(iops(1)));
        let done = load(&limiter, write(4096), 8);
        seconds(0.5).await;
        assert_eq!(done.get(), 1);
        limiter.set(total(iops(1000)));
        seconds(1.0).await;
        within_5_percent(done.get(), 1000.0, "faster");
        limiter.set(total(iops(10)));
        let before = done.get();
        seconds(10.0).await;
        within_5_percent(done.get() - before, 100.0, "slower");
        // With another kind of limit none of the debt is left.
        limiter.set(total(bytes(40 * MIB)));
        let before = done.get();
        seconds(1.0).await;
        within_5_percent(done.get() - before, 10_240.0, "bytes");
    });
}

#[test]
fn without_limits_all_go_on_at_once() {
    run(async {
        let limiter = limiter(total(bytes(64 << 10)));
        let start = tokio::time::Instant::now();
        limiter.turn(write(32 * MIB)).await;
        let waiting = {
            let limiter = limiter.clone();
            spawn_local(async move { limiter.turn(read(4096)).await })
        };
        seconds(1.0).await;
        assert!(!waiting.is_finished());
        limiter.set(Limits::default());
        waiting.await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(1));
        assert!(!limiter.is_limited());
    });
}

#[test]
fn a_debt_is_kept_in_bytes() {
    run(async {
        let limiter = limiter(total(bytes(MIB)));
        limiter.turn(write(100 * MIB)).await;
        limiter.set(total(bytes(10 * MIB)));
        let start = tokio::time::Instant::now();
        limiter.turn(write(1)).await;
        let took = start.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took}");
        // What was not changed is not forgiven either.
        limiter.turn(write(100 * MIB)).await;
        limiter.set(Limits { read: iops(5), ..total(bytes(10 * MIB)) });
        let start = tokio::time::Instant::now();
        limiter.turn(write(1)).await;
        let took = start.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "{took}");
    });
}

#[test]
fn who_gives_up_costs_nobody_anything() {
    run(async {
        let limiter = limiter(total(iops(100)));
        let done = load(&limiter, write(4096), 4);
        seconds(0.01).await;
        for _ in 0..1000 {
            // Some give up while they wait, some in the moment of their turn.
            let mut given_up: Vec<_> = (0..3).map(|_| Box::pin(limiter.turn(write(4096)))).collect();
            for turn in &mut given_up {
                assert!(futures_util::poll!(turn.as_mut()).is_pending());
            }
            seconds(0.01).await;
        }
        within_5_percent(done.get(), 1000.0, "those who stay");
        assert!(limiter.state.nobody_waits() || limiter.state.waiting[0].borrow().len() <= 4);
    });
}

#[test]
fn a_turn_that_comes_too_late_is_given_back() {
    run(async {
        let limiter = limiter(total(iops(1)));
        limiter.turn(write(4096)).await;
        let mut turn = Box::pin(limiter.turn(write(4096)));
        assert!(futures_util::poll!(turn.as_mut()).is_pending());
        seconds(1.0).await;
        // It may go on now, and does not.
        drop(turn);
        let start = tokio::time::Instant::now();
        limiter.turn(write(4096)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    });
}

#[test]
fn all_are_let_go_at_an_end() {
    run(async {
        let limiter = limiter(total(iops(1)));
        let start = tokio::time::Instant::now();
        let waiting: Vec<_> = (0..50)
            .map(|number| {
                let limiter = limiter.clone();
                spawn_local(async move {
                    limiter.turn(if number % 2 == 0 { read(4096) } else { write(4096) }).await;
                })
            })
            .collect();
        seconds(0.5).await;
        limiter.let_go();
        for waiting in waiting {
            waiting.await.unwrap();
        }
        assert_eq!(start.elapsed(), Duration::from_millis(500));
    });
}

#[test]
fn what_was_saved_up_is_no_more_after_a_change() {
    run(async {
        let burst = |iops_burst| {
            let rates = Rates { iops_burst: Some(iops_burst), ..iops(100) };
            Limits { burst_s: Some(10), ..total(rates) }
        };
        let limiter = limiter(burst(1000));
        let done = load(&limiter, write(4096), 16);
        // 9,000 are saved up; after 5 s 4,500 of them are left, whatever is changed how often.
        seconds(5.0).await;
        for peak in [2000, 1000, 2000] {
            limiter.set(burst(peak));
        }
        let before = done.get();
        seconds(10.0).await;
        within_5_percent(done.get() - before, 4500.0 + 1000.0, "what was left, and 10 s of 100");
    });
    // Nor is it there again when it was taken away in between, or made of nothing: it has to be earned.
    run(async {
        let rates = Rates { iops_burst: Some(1000), ..iops(100) };
        let burst = Limits { burst_s: Some(2), ..total(rates) };
        let limiter = limiter(total(iops(100)));
        let done = load(&limiter, write(4096), 1);
        for round in 1..4 {
            limiter.set(total(iops(100)));
            limiter.set(burst);
            seconds(10.0).await;
            within_5_percent(done.get(), f64::from(round) * 1000.0, "no burst");
        }
    });
    // What is owed is not forgiven a part at a time.
    run(async {
        let limiter = limiter(total(iops(1)));
        let start = tokio::time::Instant::now();
        limiter.turn(write(4096)).await;
        for per_s in [2, 1, 2, 1, 2, 1] {
            limiter.set(total(iops(per_s)));
        }
        limiter.turn(write(4096)).await;
        let took = start.elapsed().as_secs_f64();
        assert!((0.95..=1.0).contains(&took), "{took}");
    });
}

#[test]
fn a_discard_costs_the_clusters_that_it_clears_in_part() {
    let zero =
        |start, length| GuestRequest::Zero(ByteRange { start: ByteOffset(start), length: ByteCount(length) });
    for (start, length, bytes) in [
        (0, 4096, 0),
        (0, 1 << 30, 0),
        (1, 1, 4096),
        (4096, 4095, 4096),
        (1, 8191, 4096),
        (4095, 2, 8192),
        (1, 1 << 30, 8192),
        (0, 0, 0),
    ] {
        assert_eq!(zero(start, length).bytes(), bytes, "{length} at {start}");
    }
    run(check_rate(total(bytes(MIB)), zero(512, 512), 8, 256.0, Duration::ZERO));
}

#[test]
fn extremes_neither_overflow_nor_hang() {
    let all = Rates {
        iops: Some(1),
        iops_burst: Some(ovs_units::IOPS_MAX),
        bytes_per_s: Some(ovs_units::BYTES_PER_S_MIN),
        bytes_per_s_burst: Some(ovs_units::BYTES_PER_S_MAX),
    };
    run(async {
        let limits = Limits { total: all, read: all, write: all, burst_s: Some(ovs_units::BURST_S_MAX) };
        limits.check().unwrap();
        let limiter = limiter(limits);
        for _ in 0..1000 {
            limiter.turn(write(u64::MAX)).await;
            limiter.set(Limits::default());
            limiter.set(limits);
            limiter.turn(ZERO).await;
        }
        // It counts as it did.
        limiter.set(Limits::default());
        limiter.set(total(iops(1)));
        let start = tokio::time::Instant::now();
        for _ in 0..3 {
            limiter.turn(ZERO).await;
        }
        let took = start.elapsed().as_secs_f64();
        assert!((1.95..=2.0).contains(&took), "{took}");
        // What no check has seen.
        limiter.set(Limits { burst_s: Some(u64::MAX), ..total(iops(0)) });
        limiter.turn(write(0)).await;
        limiter.set(Limits::default());
        let start = tokio::time::Instant::now();
        limiter.turn(write(u64::MAX)).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "without limits");
    });
}
