//! The same request again: conditions that come with a request, and what an Idempotency-Key stands for.
//!
//! A key is kept with the request and the object that it made, until a day after that object was deleted: a client that
//! never saw the answer may ask again and never makes a second object.

use super::{Volumes, problem::from_catalogue};
use ovs_api::{Problem, ProblemKind};
use ovs_cluster::catalogue::{CatalogueError, FORMAT, IdempotencyRecord, Record};
use serde_json::Value;
use uuid::Uuid;

/// How long a key outlives the object that it made.
const KEPT_MS: u64 = 24 * 3_600_000;

/// Conditions that come with a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// The revision that the object must still have.
    pub if_match: Option<u64>,
    /// The client's key, made unique by the operation.
    pub idempotency_key: Option<String>,
}

impl Terms {
    /// Refuses when the object has another revision than was asked for.
    pub fn check_revision(&self, now: u64) -> Result<(), Problem> {
        match self.if_match {
            Some(expected) if expected != now => {
                let detail = format!("the object is at revision {now}, not {expected}");
                Err(Problem::new(ProblemKind::PreconditionFailed, detail).with("revision", now))
            }
            _ => Ok(()),
        }
    }
}

impl Volumes {
    /// The object that this key made before, if it did. A key used for another request is refused, and so is one whose
    /// object is gone.
    pub(super) async fn idempotent<T: Record>(
        &self,
        terms: &Terms,
        request: &Value,
    ) -> Result<Option<Uuid>, Problem> {
        let is_there =
            async |object| Ok(self.catalogue.find::<T>(object).await.map_err(from_catalogue)?.is_some());
        self.idempotent_if(terms, request, T::KIND, is_there).await
    }

    /// The same for objects that have no record of their own.
    pub(super) async fn idempotent_if(
        &self,
        terms: &Terms,
        request: &Value,
        kind: &str,
        is_there: impl AsyncFn(Uuid) -> Result<bool, Problem>,
    ) -> Result<Option<Uuid>, Problem> {
        let Some(key) = &terms.idempotency_key else { return Ok(None) };
        let index = IdempotencyRecord::key_key(key);
        let Some(known) =
            self.catalogue.find_by::<IdempotencyRecord>(&index).await.map_err(from_catalogue)?
        else {
            return Ok(None);
        };
        if known.record.request != *request {
            let detail = "Idempotency-Key: it was used for a different request";
            return Err(Problem::new(ProblemKind::Conflict, detail));
        }
        if !is_there(known.record.object).await? {
            let detail = format!("the {kind} that this request made before is deleted");
            return Err(
                Problem::new(ProblemKind::Conflict, detail).with("uuid", known.record.object.to_string())
            );
        }
        Ok(Some(known.record.object))
    }

    /// Keeps a key with what it made.
    pub(super) async fn remember(&self, terms: &Terms, request: &Value, object: Uuid) -> Result<(), Problem> {
        let Some(key) = &terms.idempotency_key else { return Ok(()) };
        let record = IdempotencyRecord {
            format: FORMAT,
            uuid: self.chance.uuid(),
            key: key.clone(),
            request: request.clone(),
            object,
            gone_ms: None,
        };
        match self.catalogue.insert(record).await {
            Ok(_) | Err(CatalogueError::Exists { .. }) => Ok(()),
            Err(error) => Err(from_catalogue(error)),
        }
    }

    /// An object is gone: the keys that made it go a day from now. (Failing that, the next sweep finds them.)
    pub(super) async fn object_gone(&self, object: Uuid) {
        if let Err(error) = self.mark_gone(|record| record.object == object).await {
            tracing::warn!(%object, %error, "idempotency keys were not marked");
        }
    }

    async fn mark_gone(&self, is_gone: impl Fn(&IdempotencyRecord) -> bool) -> Result<(), CatalogueError> {
        let now_ms = self.clock.wall_ms();
        for stored in self.all_keys().await? {
            if stored.record.gone_ms.is_none() && is_gone(&stored.record) {
                let marked = IdempotencyRecord { gone_ms: Some(now_ms), ..stored.record.clone() };
                self.catalogue.update(&stored, marked).await?;
            }
        }
        Ok(())
    }

    /// Forgets the keys whose objects were deleted more than a day ago.
    pub(super) async fn sweep_idempotency_keys(&self) -> Result<(), CatalogueError> {
        let now_ms = self.clock.wall_ms();
        for stored in self.all_keys().await? {
            if stored.record.gone_ms.is_some_and(|gone_ms| now_ms >= gone_ms.saturating_add(KEPT_MS)) {
                self.catalogue.remove(&stored).await?;
            }
        }
        Ok(())
    }

    async fn all_keys(
        &self,
    ) -> Result<Vec<ovs_cluster::catalogue::Stored<IdempotencyRecord>>, CatalogueError> {
        self.catalogue.all(|error| tracing::error!(%error, "an idempotency key cannot be read")).await
    }
}
