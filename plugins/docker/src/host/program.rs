//! Other programs: started with a vector of arguments, never a shell; with a time limit, after which they are killed;
//! what they last said on stderr goes into the error.

use std::{ffi::OsStr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    time::timeout,
};

/// How much of a program's last words is kept.
const WORDS_BYTES_MAX: usize = 2048;
/// How long a killed program may take to go. One stuck in the kernel goes when the kernel lets it.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// The end of its stdout and stderr.
    pub last_words: String,
}

/// Runs a program to its end; the error is for the user.
pub async fn run<A: AsRef<OsStr>>(program: &str, args: &[A], limit: Duration) -> Result<Ended, String> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program} cannot be started: {error}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = timeout(limit, async {
        let (stdout, stderr, status) = tokio::join!(tail(stdout), tail(stderr), child.wait());
        (stdout, stderr, status)
    })
    .await;
    match ended {
        Ok((stdout, stderr, Ok(status))) => {
            let both = if stderr.trim().is_empty() { stdout } else { stderr };
            let words: Vec<&str> = both.split_whitespace().collect();
            Ok(Ended { code: status.code(), last_words: words.join(" ") })
        }
        Ok((_, _, Err(error))) => Err(format!("{program}: {error}")),
        Err(_) => {
            // Whether it goes in time or not, it is not waited for any longer.
            let _ = timeout(KILL_TIMEOUT, child.kill()).await;
            Err(format!("{program} did not finish within {} s and was killed", limit.as_secs()))
        }
    }
}

/// The same, where only exit code 0 is good.
pub async fn run_well<A: AsRef<OsStr>>(program: &str, args: &[A], limit: Duration) -> Result<(), String> {
    let ended = run(program, args, limit).await?;
    match ended.code {
        Some(0) => Ok(()),
        Some(code) => Err(format!("{program} failed with exit code {code}: {}", ended.last_words)),
        None => Err(format!("{program} was ended by a signal: {}", ended.last_words)),
    }
}

/// Reads everything, so that the program never waits, and keeps the end.
async fn tail(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else { return String::new() };
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(WORDS_BYTES_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn arguments_are_not_for_a_shell() {
        let ended = run("echo", &["$(id)", ";", "`id`"], LONG).await.unwrap();
        assert_eq!(ended, Ended { code: Some(0), last_words: "$(id) ; `id`".to_owned() });
    }

    #[tokio::test]
    async fn the_error_carries_the_last_words() {
        let error = run_well("ls", &["/does/not/exist"], LONG).await.unwrap_err();
        assert!(error.contains("/does/not/exist") && error.contains("exit code 2"), "{error}");
        assert!(run_well("no-such-program", &["x"], LONG).await.unwrap_err().contains("no-such-program"));
    }

    #[tokio::test]
    async fn much_talk_is_read_and_not_kept() {
        let ended = run("seq", &["1000000"], LONG).await.unwrap();
        assert!(ended.last_words.ends_with("999999 1000000") && ended.last_words.len() <= WORDS_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed() {
        let error = run_well("sleep", &["1000"], Duration::from_millis(50)).await.unwrap_err();
        assert!(error.contains("killed"), "{error}");
    }
}
