//! The engine thread and the way onto it.
//!
//! ```text
//!  any thread ── EngineHandle::run(closure) ──▶ bounded channel ──▶ engine thread: spawn_local ──▶ oneshot ──▶ caller
//! ```
//!
//! One thread owns the engine, the vDisks, the catalogue, the attachments and every NBD connection: nothing there is
//! shared, nothing needs a lock. Others send it closures. A closure that has begun runs to its end even when its caller
//! goes away (a half-made vDisk helps nobody); only waits watch for that. A panic on this thread means that an
//! invariant of ours is broken: the process ends at once (see `main`), and what was acknowledged is replayed.

use std::{future::Future, pin::Pin, rc::Rc, thread};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Closures that wait for their turn at most; the next caller waits.
const JOBS_QUEUED_MAX: usize = 256;
/// The name of the thread; the panic hook knows it.
pub const THREAD_NAME: &str = "engine";

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type Job<S> = Box<dyn FnOnce(Rc<S>) -> LocalFuture + Send>;

/// The engine thread is gone (ovsd is stopping).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("ovsd is stopping")]
pub struct EngineGone;

/// The way onto the engine thread, whose state is `S`.
#[derive(Debug)]
pub struct EngineHandle<S> {
    jobs: mpsc::Sender<Job<S>>,
}

impl<S> Clone for EngineHandle<S> {
    fn clone(&self) -> Self {
        EngineHandle { jobs: self.jobs.clone() }
    }
}

impl<S: 'static> EngineHandle<S> {
    /// Starts the thread and builds its state there; comes back when that is done or failed. The thread ends when
    /// every handle is gone.
    pub async fn start<B, F, E>(build: B) -> Result<(EngineHandle<S>, thread::JoinHandle<()>), E>
    where
        B: FnOnce() -> F + Send + 'static,
        F: Future<Output = Result<Rc<S>, E>> + 'static,
        E: From<std::io::Error> + Send + 'static,
    {
        let (jobs, mut queue) = mpsc::channel::<Job<S>>(JOBS_QUEUED_MAX);
        let (tell, told) = oneshot::channel::<Result<(), E>>();
        let body = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(error.into()));
                    return;
                }
            };
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                let state = match build().await {
                    Ok(state) => state,
                    Err(error) => {
                        let _ = tell.send(Err(error));
                        return;
                    }
                };
                if tell.send(Ok(())).is_err() {
                    return;
                }
                while let Some(job) = queue.recv().await {
                    tokio::task::spawn_local(job(state.clone()));
                }
            });
        };
        let thread = thread::Builder::new().name(THREAD_NAME.into()).spawn(body)?;
        match told.await {
            Ok(Ok(())) => Ok((EngineHandle { jobs }, thread)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(std::io::Error::other("the engine thread ended while it was starting").into()),
        }
    }

    /// Runs `job` on the engine thread and brings its result. It runs to its end even when the caller goes away.
    pub async fn run<T, F, Fut>(&self, job: F) -> Result<T, EngineGone>
    where
        F: FnOnce(Rc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (reply, result) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let work = job(state);
            Box::pin(async move {
                let _ = reply.send(work.await);
            })
        });
        self.jobs.send(job).await.map_err(|_| EngineGone)?;
        result.await.map_err(|_| EngineGone)
    }

    /// As [`run`](Self::run), for a wait that changes nothing: it is dropped when the caller goes away.
    pub async fn wait<T, F, Fut>(&self, job: F) -> Result<T, EngineGone>
    where
        F: FnOnce(Rc<S>) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (mut reply, result) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let work = job(state);
            Box::pin(async move {
                tokio::select! {
                    done = work => { let _ = reply.send(done); }
                    () = reply.closed() => {}
                }
            })
        });
        self.jobs.send(job).await.map_err(|_| EngineGone)?;
        result.await.map_err(|_| EngineGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::time::Duration;

    async fn start() -> (EngineHandle<Cell<u32>>, thread::JoinHandle<()>) {
        EngineHandle::start(|| async { Ok::<_, std::io::Error>(Rc::new(Cell::new(0))) }).await.unwrap()
    }

    #[tokio::test]
    async fn closures_share_one_threads_state() {
        let (handle, thread) = start().await;
        for expected in 1..=3 {
            let got = handle
                .run(|state| async move {
                    state.set(state.get() + 1);
                    (state.get(), thread::current().name().map(str::to_owned))
                })
                .await
                .unwrap();
            assert_eq!(got, (expected, Some(THREAD_NAME.to_owned())));
        }
        drop(handle);
        tokio::task::spawn_blocking(|| thread.join()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller_and_a_wait_does_not() {
        let (handle, _thread) = start().await;
        let worker = handle.clone();
        let work = async move {
            let step = |state: Rc<Cell<u32>>| async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                state.set(7);
            };
            worker.run(step).await
        };
        assert!(tokio::time::timeout(Duration::from_millis(5), work).await.is_err());
        let waiter = handle.clone();
        let wait = async move {
            let step = |state: Rc<Cell<u32>>| async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                state.set(8);
            };
            waiter.wait(step).await
        };
        assert!(tokio::time::timeout(Duration::from_millis(5), wait).await.is_err());
        tokio::time::sleep(Duration::from_millis(80)).await;
        assert_eq!(handle.run(|state| async move { state.get() }).await, Ok(7));
    }

    #[tokio::test]
    async fn a_state_that_cannot_be_built_is_an_error() {
        let started = EngineHandle::<()>::start(|| async { Err(std::io::Error::other("locked")) }).await;
        assert_eq!(started.err().map(|error| error.to_string()), Some("locked".to_owned()));
    }
}
