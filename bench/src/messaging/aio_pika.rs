//! aio-pika, in an interpreter of its own.

use std::path::PathBuf;

use tokio::process::Command;

use crate::harness::Result;

/// A Python that has aio-pika.
pub struct AioPika {
    python: PathBuf,
}

impl AioPika {
    /// The one under `target/`, made once.
    pub async fn new() -> Result<Self> {
        let home = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench/python");
        let python = home.join("bin/python");
        let ready = home.join(PACKAGE);
        if !ready.exists() {
            run(Command::new("python3").args(["-m", "venv"]).arg(&home)).await?;
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE])).await?;
            std::fs::write(ready, "")?;
        }
        Ok(Self { python })
    }

    /// Messages in a second, as it measures itself; the start of the interpreter does not count.
    pub async fn measure(
        &self,
        what: &str,
        url: &str,
        queue: &str,
        count: u32,
        at_a_time: u32,
    ) -> Result<f64> {
        let mut command = Command::new(&self.python);
        command
            .args(["-c", SCRIPT, what, url, queue])
            .args([count, at_a_time].map(|number| number.to_string()));
        Ok(run(&mut command).await?.trim().parse()?)
    }

    /// What it is called in the table.
    pub fn name() -> String {
        PACKAGE.replace("==", " ")
    }
}

async fn run(command: &mut Command) -> Result<String> {
    let output = command.kill_on_drop(true).output().await?;
    if !output.status.success() {
        // The command holds a URL with a password.
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("python: {}: {complaint}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

const PACKAGE: &str = "aio-pika==10.2.1";
const SCRIPT: &str = include_str!("aio_pika.py");
