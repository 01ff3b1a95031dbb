//! One thread with one runtime for the whole process.
//!
//! Every test has a runtime of its own that ends with the test. What must live longer runs here:
//! the administrators' connections, the proxies of a sandbox that several tests share, and the
//! clean-up that `Drop` cannot await (and which would panic outside a runtime).

use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind};

const THREAD: &str = "maestro-testkit";

static RUNTIME: OnceLock<Result<Handle, String>> = OnceLock::new();

/// The handle of the background runtime; the thread is started on first use and lives as long as
/// the process.
pub(crate) fn handle() -> Result<&'static Handle, Error> {
    RUNTIME
        .get_or_init(|| start().map_err(|e| e.to_string()))
        .as_ref()
        .map_err(|e| Error::new(ErrorKind::Io, format!("starting a background thread: {e}")))
}

/// Runs a future to its end on the background runtime, even if the caller stops waiting: half a
/// sandbox would be an orphan.
pub(crate) async fn run<T: Send + 'static>(
    future: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match handle()?.spawn(future).await {
        Ok(result) => result,
        Err(e) => Err(Error::new(ErrorKind::Io, "running a background task").with(e)),
    }
}

/// Starts a task whose owner aborts it.
pub(crate) fn spawn(
    future: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    Ok(handle()?.spawn(future))
}

/// Blocks until every sender is gone, at most `limit`: for a `Drop` whose work must not be cut off by
/// the end of the process. The background thread itself does not wait, it would wait for itself.
pub(crate) fn wait_for_all(done: &Receiver<()>, limit: Duration) {
    if std::thread::current().name() != Some(THREAD) {
        // Nothing is ever sent. What takes longer is left to the next start, as after a kill.
        let _ = done.recv_timeout(limit);
    }
}

fn start() -> io::Result<Handle> {
    raise_file_limit();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name(THREAD.to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

/// Every connection through a link is two sockets of this process beside the client's own, and the
/// servers that it starts inherit its limit: the usual 1,024 are soon used up. As far as this account
/// may, and not beyond what a server prepares for (RabbitMQ makes tables of that size).
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    const ENOUGH: u64 = 65_536;

    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(ENOUGH, |most| most.min(ENOUGH));
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = Some(wanted);
        // Best effort: what does not fit says so by itself.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}
