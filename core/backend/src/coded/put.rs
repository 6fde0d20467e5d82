//! Putting: every fragment on its drive, or on another that keeps to the policy; acknowledged when c of each chunk are stored.

use super::drives::Duty;
use super::encode::{self, Fragment};
use super::known::Object;
use super::on_their_way::PutAtWork;
use super::placement::{self, Choice};
use super::reconstruct::has_body;
use super::{Compression, Inner, Policy, name, timed};
use crate::{BackendError, ObjectName, Urgency};
use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::stream::{FuturesUnordered, StreamExt};
use ovs_format::fragment::Header;
use std::{cell::RefCell, rc::Rc, sync::Arc};
use tokio::sync::oneshot;

/// Why an object is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    /// Somebody stores it.
    New(Urgency),
    /// So that what can be read of it stands. What is damaged makes way; what is another's does not, and costs that drive alone.
    Again,
}

impl Put {
    /// Another's bytes under the name: are ours then not what it means?
    fn gives_way(self) -> bool {
        matches!(self, Put::New(_))
    }

    fn urgency(self) -> Urgency {
        match self {
            Put::New(urgency) => urgency,
            Put::Again => Urgency::Reserve,
        }
    }
}

impl Inner {
    pub(super) async fn put(
        self: Rc<Self>,
        name: ObjectName,
        parts: Vec<Bytes>,
        why: Put,
    ) -> Result<(), BackendError> {
        // Also between two chunks.
        let _at_work = PutAtWork::new(&self, &name);
        let object_bytes = parts.iter().map(|part| part.len() as u64).sum();
        let policy = self.policy_now(&name)?;
        // All of an object is under one key, also where others are set meanwhile.
        let preset = self.preset();
        let compression = match why {
            Put::New(_) => preset.compression,
            // Other versions of this program may compress to other bytes, and would not be let by.
            Put::Again => Compression::None,
        };
        let hash = encode::name_hash(&name);
        let own = Arc::clone(&preset);
        let (put, parts) =
            self.compute(object_bytes, move |_| (encode::put_id(&own, &hash, &parts), parts)).await?;
        let template = encode::template(&preset, compression, hash, put, policy, object_bytes);
        let layout = encode::layout(&template);
        let last = template.geometry.chunks() - 1;
        let highest = (policy.fragments() - 1) as u8;
        // Whoever could not store the last of them would have stored the others for nothing.
        name::fragment(&name, layout, last, highest)?;
        let mut rest = parts.into_iter();
        let mut left = Bytes::new();
        let mut plain_of = |chunk| {
            let range = template.geometry.chunk_range(chunk);
            take(&mut left, &mut rest, (range.end - range.start) as usize)
        };
        // The object is there when its first chunk is: that is put when the others stand.
        let first = plain_of(0);
        let others = (1..=last).map(|chunk| (chunk, plain_of(chunk)));
        let encoded = async |(chunk, plain): (u32, Vec<Bytes>)| {
            let template = Header { chunk, ..template };
            let bytes = plain.iter().map(|part| part.len() as u64).sum();
            let own = Arc::clone(&preset);
            let fragments = self.compute(bytes, move |_| encode::chunk(&template, own.keys.last(), &plain));
            Ok::<_, BackendError>((chunk, fragments.await?))
        };
        let mut chunks = others.chain([(0, first)]);
        let mut next = match chunks.next() {
            Some(chunk) => Some(encoded(chunk).await?),
            None => None,
        };
        while let Some((chunk, fragments)) = next {
            let needed = usize::from(template.geometry.data_stored(chunk)) + policy.spare() as usize;
            let store = self.store((&name, layout, chunk), policy, fragments, needed, why);
            // The next one is made while this one is stored.
            let encode_next = async {
                match chunks.next() {
                    Some(chunk) => encoded(chunk).await.map(Some),
                    None => Ok(None),
                }
            };
            ((), next) = try_join(store, encode_next).await?;
        }
        self.known.borrow_mut().learn(Object::new(&name, template));
        Ok(())
    }

    /// The first policy that the drives which answer satisfy, or else the first that all of them would.
    fn policy_now(&self, name: &ObjectName) -> Result<Policy, BackendError> {
        let preset = self.preset();
        let policies = &preset.policies;
        let drives = self.drives();
        let takes = |index: usize| drives[index].duty.takes();
        let by_live = placement::choose(policies, &drives, |index| takes(index) && !self.is_suspect(index));
        let chosen = by_live.or_else(|| placement::choose(policies, &drives, takes));
        chosen.ok_or_else(|| BackendError::Retry {
            operation: "put",
            object: name.to_string(),
            reason: format!("{} drives satisfy no policy of the preset", drives.with(Duty::takes).count()),
        })
    }

    /// Returns when enough fragments are stored, or cannot be. The others go on.
    async fn store(
        self: &Rc<Self>,
        (name, layout, chunk): (&ObjectName, u32, u32),
        policy: Policy,
        fragments: Vec<Fragment>,
        needed: usize,
        why: Put,
    ) -> Result<(), BackendError> {
        let (sender, receiver) = oneshot::channel();
        let (inner, name) = (Rc::clone(self), name.clone());
        let mut at_work = PutAtWork::new(&inner, &name);
        tokio::task::spawn_local(async move {
            let mut sender = Some(sender);
            let drives = inner.drives();
            let (homes, choice) = placement::homes(&drives, &name, chunk, policy, fragments.len());
            let choice = RefCell::new(choice);
            let placed = fragments.iter().zip(homes);
            let mut puts: FuturesUnordered<_> = placed
                .map(|(fragment, home)| (fragment, home.now))
                .map(|(fragment, home)| inner.place((&name, layout, chunk), fragment, home, &choice, why))
                .collect();
            let (mut stored, mut failure) = (0, None);
            let mut bytes: u64 = fragments.iter().map(|fragment| fragment.bytes.len() as u64).sum();
            while let Some(done) = puts.next().await {
                match done {
                    Ok(stored_bytes) => {
                        stored += 1;
                        bytes -= stored_bytes;
                    }
                    Err(error) => {
                        if !matches!(error, BackendError::Conflict { .. }) || !why.gives_way() {
                            inner.count(|stats| stats.missing += 1);
                            inner.upkeep.ask_for_survey();
                        }
                        failure = Some(match failure {
                            Some(conflict @ BackendError::Conflict { .. }) => conflict,
                            _ => error,
                        });
                    }
                }
                // Whatever else happens.
                let is_conflict = why.gives_way() && matches!(failure, Some(BackendError::Conflict { .. }));
                if stored >= needed
                    && !is_conflict
                    && sender.is_some()
                    && at_work.may_be_late(bytes)
                    && let Some(sender) = sender.take()
                {
                    let _gone = sender.send(Ok(()));
                }
            }
            let result = match failure {
                Some(failure @ BackendError::Conflict { .. }) if why.gives_way() || stored < needed => {
                    Err(conflict_of(&name, failure))
                }
                Some(failure) if stored < needed => Err(failure),
                _ => Ok(()),
            };
            if let Some(sender) = sender.take() {
                let _gone = sender.send(result);
            }
        });
        receiver.await.unwrap_or_else(|_| {
            let reason = "the task that stores fragments has ended early".to_owned();
            Err(BackendError::Retry { operation: "put", object: String::new(), reason })
        })
    }

    /// Puts one fragment where it belongs, or on the next drive that may have it and takes it. Returns its bytes.
    async fn place(
        self: &Rc<Self>,
        (name, layout, chunk): (&ObjectName, u32, u32),
        fragment: &Fragment,
        home: Option<usize>,
        choice: &RefCell<Choice<'_>>,
        why: Put,
    ) -> Result<u64, BackendError> {
        let own = name::fragment(name, layout, chunk, fragment.number)?;
        let drives = self.drives();
        let may = |index: usize| drives[index].duty.takes() && !self.is_suspect(index);
        let instead_of = |index| choice.borrow_mut().instead_of(index, may);
        // If nobody else may have it, it is tried all the same.
        let is_away = |home: &usize| self.is_suspect(*home);
        let mut at = home.filter(is_away).and_then(instead_of).or(home);
        let mut failure = None;
        while let Some(index) = at {
            let mut put = self.put_on(index, name, &own, fragment.bytes.clone(), why.urgency()).await;
            let is_taken = matches!(put, Err(BackendError::Conflict { .. }));
            if is_taken && !why.gives_way() {
                put = self.replace_rotten(index, (name, chunk), &own, fragment, false).await;
            }
            let error = match put {
                Ok(()) => {
                    self.answers(index);
                    if at != home {
                        self.count(|stats| stats.misplaced += 1);
                        self.upkeep.ask_for_survey();
                    }
                    return Ok(fragment.bytes.len() as u64);
                }
                Err(conflict @ BackendError::Conflict { .. }) if why.gives_way() => return Err(conflict),
                Err(error) => error,
            };
            // One that is full, or where another fragment is, answers all the same.
            if !is_taken && !matches!(error, BackendError::NoSpace { .. }) {
                self.fails(index, &error);
            }
            failure = Some(error);
            at = instead_of(index);
        }
        Err(failure.unwrap_or_else(|| BackendError::Retry {
            operation: "put",
            object: own.to_string(),
            reason: "no drive is left for it".to_owned(),
        }))
    }

    /// Puts a fragment in the place of one under its name that is damaged. Before that goes, it is on another drive, if it is on
    /// none: there are never fewer, of good ones and bad.
    pub(super) async fn replace_rotten(
        self: &Rc<Self>,
        index: usize,
        (name, chunk): (&ObjectName, u32),
        own: &ObjectName,
        fragment: &Fragment,
        is_elsewhere: bool,
    ) -> Result<(), BackendError> {
        let put_on = |index| self.put_on(index, name, own, fragment.bytes.clone(), Urgency::Reserve);
        let drives = self.drives();
        let there = timed("get", own.as_str(), drives[index].backend.get(own)).await?;
        if is_rotten(&there, fragment) && is_elsewhere {
            self.delete_on(index, name, own).await?;
        } else if is_rotten(&there, fragment) {
            // The last drives in its order have nothing of it, if any has not.
            let order = placement::order(&drives, name, chunk);
            let may =
                |other: &usize| *other != index && drives[*other].duty.takes() && !self.is_suspect(*other);
            let others = order.into_iter().rev().filter(may);
            // That nobody else is asked, or takes it, is no word about what is there.
            let reason = "no other drive takes it, so that it could be replaced".to_owned();
            let mut elsewhere =
                Err(BackendError::Retry { operation: "put", object: own.to_string(), reason });
            for other in others {
                match put_on(other).await {
                    Err(BackendError::Conflict { .. }) => {}
                    put => elsewhere = put,
                }
                if elsewhere.is_ok() {
                    break;
                }
            }
            elsewhere?;
            self.delete_on(index, name, own).await?;
        }
        put_on(index).await
    }
}

/// Are these bytes of this fragment, and not all that was put?
fn is_rotten(there: &Bytes, fragment: &Fragment) -> bool {
    let own = Header::decode(&fragment.bytes).ok();
    match Header::decode(there) {
        // Somebody else's is not ours to judge.
        Ok(header) => Some(header) == own && !has_body(&header, there),
        Err(_) => true,
    }
}

/// The drives know fragments; who asked knows the object.
fn conflict_of(name: &ObjectName, failure: BackendError) -> BackendError {
    match failure {
        BackendError::Conflict { .. } => BackendError::Conflict { object: name.to_string() },
        other => other,
    }
}

/// The next bytes of the parts, in as many of them as there are.
fn take(left: &mut Bytes, rest: &mut impl Iterator<Item = Bytes>, length: usize) -> Vec<Bytes> {
    let (mut taken, mut missing) = (Vec::new(), length);
    loop {
        let part = left.split_to(left.len().min(missing));
        missing -= part.len();
        if !part.is_empty() {
            taken.push(part);
        }
        if missing == 0 {
            return taken;
        }
        match rest.next() {
            Some(next) => *left = next,
            None => return taken,
        }
    }
}
