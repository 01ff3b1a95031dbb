//! SIGTERM and SIGINT: the first asks for a drain, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, ErrorKind};

/// The signals of the process, or none for a service inside a test.
pub(crate) struct Signals {
    streams: Option<(Signal, Signal)>,
}

impl Signals {
    pub(crate) fn listen(owns_process: bool) -> Result<Self, Error> {
        if !owns_process {
            return Ok(Self { streams: None });
        }
        let open = |kind| {
            signal(kind).map_err(|error| {
                Error::new(ErrorKind::Start, "cannot listen to the process's signals")
                    .caused_by(error)
            })
        };
        Ok(Self {
            streams: Some((
                open(SignalKind::terminate())?,
                open(SignalKind::interrupt())?,
            )),
        })
    }

    /// The next signal's name; never completes for a service that does not own its process.
    pub(crate) async fn next(&mut self) -> &'static str {
        let Some((terminate, interrupt)) = &mut self.streams else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => TERMINATE,
            _ = interrupt.recv() => INTERRUPT,
        }
    }

    /// Ends the process at once, with the exit code shells give for the signal (128 + its number).
    pub(crate) fn end_process(signal: &'static str) -> ! {
        tracing::warn!(
            signal,
            "asked to stop again: ending at once, without a drain"
        );
        std::process::exit(if signal == TERMINATE {
            128 + 15
        } else {
            128 + 2
        })
    }
}

const TERMINATE: &str = "SIGTERM";
const INTERRUPT: &str = "SIGINT";
