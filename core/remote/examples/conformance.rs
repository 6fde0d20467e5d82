//! The conformance suite against a store that runs: integration/test_engines.py starts them.
//!
//! ```text
//! conformance STORE suite | probe | load SECONDS       STORE: a RemoteStore as JSON; $OVS_STORE_NAME, $OVS_STORE_SECRET
//! ```
//!
//! `suite` panics at the first rule that is broken. `probe` prints its report. `load` puts, gets, lists and deletes for so
//! long, whatever becomes of the store meanwhile: only `Retry` is allowed for, and the last line says what there was of it.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use ovs_backend::{Backend, BackendError, ObjectName, Urgency, conformance};
use ovs_remote::{Credentials, RemoteBackend, RemoteOptions};
use std::{
    collections::BTreeSet,
    env,
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tokio::{runtime::Handle, task::LocalSet, time::Instant};

const RETRY: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [store, rest @ ..] = &arguments[..] else {
        bail!("usage: conformance STORE suite | probe | load SECONDS")
    };
    let store = serde_json::from_str(store).context("the store's description")?;
    let credentials = Credentials::new(env::var("OVS_STORE_NAME")?, env::var("OVS_STORE_SECRET")?);
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let is_load = rest.first() == Some(&"load");
    // Another one in each process.
    let seed = RandomState::new().hash_one(0);
    let options = match is_load {
        true => RemoteOptions { retry: RETRY, patience: PATIENCE, ..RemoteOptions::new(seed) },
        false => RemoteOptions::new(seed),
    };
    let backend = RemoteBackend::open(store, credentials, options, Handle::current())?;
    let started = Instant::now();
    let work = async {
        match rest[..] {
            ["suite"] => conformance::check_backend(&backend, conformance::Rules::OBJECTS).await,
            ["probe"] => println!("{}", serde_json::to_string(&backend.probe().await?)?),
            ["load", seconds] => load(&backend, Duration::from_secs(seconds.parse()?)).await?,
            _ => bail!("what? {rest:?}"),
        }
        Ok(())
    };
    LocalSet::new().run_until(work).await?;
    eprintln!("{} in {} ms", rest.join(" "), started.elapsed().as_millis());
    Ok(())
}

/// What a load saw.
#[derive(Default, serde::Serialize)]
struct Totals {
    puts: u64,
    gets: u64,
    lists: u64,
    deletes: u64,
    retries: u64,
    longest_ms: u128,
    /// In the last two seconds.
    retries_at_the_end: u64,
}

fn bytes_of(number: u64) -> Bytes {
    let length = 1 + (number * 7919 % 300_000) as usize;
    (0..length).map(|at| (number as usize * 31 + at / 7) as u8).collect()
}

fn name_of(number: u64) -> ObjectName {
    ObjectName::new(format!("load/{number:08}")).expect("a good name")
}

struct Load<'a> {
    backend: &'a RemoteBackend,
    totals: Totals,
    ends: Instant,
}

impl Load<'_> {
    /// `None`: the store did not answer. More than once the bounds of an operation: wrong.
    async fn ask<T>(
        &mut self,
        call: impl Future<Output = Result<T, BackendError>>,
    ) -> anyhow::Result<Option<T>> {
        let asked = Instant::now();
        let answer = call.await;
        let took = asked.elapsed();
        self.totals.longest_ms = self.totals.longest_ms.max(took.as_millis());
        ensure!(took < RETRY + 3 * PATIENCE, "an operation took {took:?}");
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(BackendError::Retry { .. }) => {
                self.totals.retries += 1;
                if self.ends.saturating_duration_since(Instant::now()) < Duration::from_secs(2) {
                    self.totals.retries_at_the_end += 1;
                }
                Ok(None)
            }
            Err(error) => bail!(error),
        }
    }
}

async fn load(backend: &RemoteBackend, time: Duration) -> anyhow::Result<()> {
    let mut load = Load { backend, totals: Totals::default(), ends: Instant::now() + time };
    // Acknowledged; and those of which nobody knows, until they are asked for again.
    let (mut stored, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    let mut number = 0;
    while Instant::now() < load.ends {
        let mut puts = Vec::new();
        for again in std::mem::take(&mut unknown) {
            puts.push(again);
        }
        puts.push(number);
        number += 1;
        for put in puts {
            match load.ask(load.backend.put(&name_of(put), vec![bytes_of(put)], Urgency::Normal)).await? {
                Some(()) => stored.insert(put),
                None => unknown.insert(put),
            };
            load.totals.puts += 1;
        }
        let Some(&read) = stored.range(number / 2..).next().or(stored.first()) else { continue };
        let expected = bytes_of(read);
        if let Some(got) = load.ask(load.backend.get(&name_of(read))).await? {
            ensure!(got == expected, "object {read} has other bytes");
        }
        let (from, length) = (expected.len() as u64 / 3, 5000);
        if let Some(got) = load.ask(load.backend.get_range(&name_of(read), from, length)).await? {
            let end = expected.len().min((from + length) as usize);
            ensure!(got[..] == expected[from as usize..end], "a range of object {read} has other bytes");
        }
        load.totals.gets += 2;
        if number % 8 == 0 {
            if let Some(found) = load.ask(load.backend.list("load/", None, 100_000)).await? {
                let found: BTreeSet<u64> =
                    found.iter().filter_map(|info| info.name.as_str()[5..].parse().ok()).collect();
                ensure!(stored.is_subset(&found), "not listed: {:?}", stored.difference(&found));
                load.totals.lists += 1;
            }
            let first = *stored.first().expect("there is one");
            // Whatever is answered: it may be gone from here on.
            stored.remove(&first);
            if load.ask(load.backend.delete(&name_of(first))).await?.is_some() {
                load.totals.deletes += 1;
                let gone = load.backend.get(&name_of(first)).await;
                ensure!(gone.is_err(), "object {first} was deleted and is read");
            }
        }
    }
    for left in stored.iter().chain(&unknown) {
        let got = load.backend.get(&name_of(*left)).await;
        ensure!(
            !stored.contains(left) || got == Ok(bytes_of(*left)),
            "object {left} at the end: {:?}",
            got.err()
        );
    }
    println!("{}", serde_json::to_string(&load.totals)?);
    Ok(())
}
