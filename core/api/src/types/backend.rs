use super::{Policy, Request, SecretReference, Timestamp};
use crate::Problem;
use ovs_units::Name;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Component, Path};
use uuid::Uuid;

/// What a backend is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// A directory.
    Dir,
    /// A bucket of Amazon's S3 or of what speaks like it.
    S3,
    /// A container of OpenStack's Swift.
    Swift,
    /// A bucket of Google's Cloud Storage.
    Gcs,
    /// A container of Azure's blobs.
    Azure,
    /// Other backends: each object in fragments over them.
    Composite,
}

/// Where objects live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// For ever the same.
    pub uuid: Uuid,
    /// Its name; fixed.
    pub name: Name,
    /// Raised by every change.
    pub revision: u64,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: BackendKind,
    /// The directory, or the address of the store; empty for a composite.
    #[serde(default)]
    pub path: String,
    /// The hosts that reach it.
    pub nodes: Vec<String>,
    /// As a drive of another backend: what else is lost when it is. A policy bounds the fragments on one node.
    #[serde(default)]
    pub node: String,
    /// As a drive of another backend: where it is; empty: nobody said.
    #[serde(default)]
    pub site: String,
    /// As a drive of another backend: its share beside the others'.
    #[serde(default = "one")]
    pub weight: u32,
    /// The vPool that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vpool: Option<Name>,
    /// The backend that it is a drive of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drive_of: Option<Name>,
    /// Of a composite: the backends that it is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<BackendDrive>,
    /// Of a composite: how objects are spread over the drives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Name>,
    /// Of a composite: what that comes to while all drives work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<BackendPlan>,
    /// Of a composite that a vPool is on: how safe what is stored is now, and what is being made good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upkeep: Option<BackendUpkeep>,
    /// Of a composite: what of it cannot be read, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Of a store: what it did when it was tried, at its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeResult>,
    /// Of a store: what this host sends to it, and receives from it, per second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// Of a store: the requests that this host has under way there at most; 32 when missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_max: Option<u32>,
    /// All its space; missing where there is no such notion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// What guest data may still use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// When it was created.
    pub created_at: Timestamp,
}

fn one() -> u32 {
    1
}

/// A backend as a drive of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendDrive {
    /// For ever the same.
    pub uuid: Uuid,
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: BackendKind,
    /// What else is lost when it is.
    pub node: String,
    /// Where it is; empty: nobody said.
    pub site: String,
    /// Its share beside the others'.
    pub weight: u32,
    /// What it is for.
    #[serde(default)]
    pub duty: DriveDuty,
    /// Why the vPool cannot use it now, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// All its space; missing where there is no such notion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
}

/// What a drive is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DriveDuty {
    /// It takes fragments and is read.
    #[default]
    Serving,
    /// It is read and takes nothing new; what is on it moves to the others, then it goes.
    Leaving,
    /// What was on it is gone and is made again on the others; it is never asked, also when it comes back. Then it goes.
    Lost,
}

/// What a composite's upkeep is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpkeepPhase {
    /// Nothing.
    Idle,
    /// It looks what is on the drives.
    Looking,
    /// It makes good what is not as it should be.
    Mending,
}

/// What is stored on a composite now, as far as it was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendUpkeep {
    /// What is being done.
    pub phase: UpkeepPhase,
    /// Objects, when it was last looked at.
    pub objects: u64,
    /// What their fragments took then.
    pub bytes: u64,
    /// How many more drives may be lost, whichever they are, before the first of these objects cannot be read: the least safe
    /// first. Empty before it was looked at. What cannot be read now is not in it.
    pub safety: Vec<SafetyShare>,
    /// Objects that may have been acknowledged, and could not be read then.
    pub unreadable: u64,
    /// Objects that are still to be made good, in the pass that goes on.
    pub to_mend: u64,
    /// Objects that were made good in it.
    pub mended: u64,
    /// How long that takes about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
    /// When it was last looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surveyed_at: Option<Timestamp>,
    /// Drives that did not answer then, or do not now.
    #[serde(default)]
    pub silent: Vec<Name>,
    /// What is in the way of more safety, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Within which time all fragments are read once; missing: only when somebody asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_every_seconds: Option<u64>,
    /// The last time that this was done from beginning to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verification>,
    /// What is being done of the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verifying: Option<Verification>,
}

/// All fragments on a composite's drives are read, and compared with what they should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verification {
    /// When it began.
    pub began_at: Timestamp,
    /// When it came to the end; missing: it has not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Objects of which all fragments were read, but for those on drives that did not answer.
    pub objects: u64,
    /// What these fragments take.
    pub bytes: u64,
    /// Of the bytes that there were when it was last looked at, so many in percent; 100 at the end.
    pub percent: u32,
    /// Fragments that were not as they should be. They are made again from the others.
    pub bad_fragments: u64,
    /// Drives of which not all was read, because they did not answer.
    #[serde(default)]
    pub missed: Vec<Name>,
    /// How long the rest takes about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
}

/// Objects that survive as many further losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SafetyShare {
    /// So many more drives may be lost.
    pub losses: u32,
    /// Objects of which that is so.
    pub objects: u64,
    /// What their fragments take.
    pub bytes: u64,
    /// Their share of all objects that can be read, rounded down.
    pub percent: u32,
}

/// A backend that becomes a drive of a composite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AddDrive {
    /// A backend that nobody uses, or a drive that is leaving: it serves again.
    pub drive: Name,
}

/// How a drive goes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveDriveQuery {
    /// What is on it is gone, or given up: it is made again on the others, and the drive is never asked for anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
    /// Also when objects cannot be read without it: they are given up with it. With `lost` alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub accept_loss: bool,
}

/// What a composite of these drives under this preset comes to while all of them work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendPlan {
    /// How many drives there are.
    pub drive_count: u32,
    /// On how many nodes.
    pub node_count: u32,
    /// In how many sites.
    pub site_count: u32,
    /// The policy that a put uses while all drives work: the first that is satisfied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// What each policy of the preset comes to, in order.
    pub policies: Vec<PolicyPlan>,
    /// So many drives may be away, whichever they are, and vDisks are opened, read and written all the same. With more, what is
    /// open is read as long as enough fragments are there; the rest waits. Deletions wait for every drive.
    pub drives_away_max: u32,
    /// The same for whole nodes.
    #[serde(default)]
    pub nodes_away_max: u32,
    /// What the drives, or those that they are made of, have together; missing where one has no such notion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_bytes: Option<u64>,
    /// What of that objects can use, before compression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usable_bytes: Option<u64>,
    /// What should be known before it is made.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// What one policy comes to over given drives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyPlan {
    /// The policy.
    pub policy: Policy,
    /// Enough fragments find a place for a put to be acknowledged.
    pub is_satisfied: bool,
    /// How many fragments of k + m find a place.
    pub fragment_count: u32,
    /// Bytes stored on the drives for each byte of an object, in percent: 150 for 4 + 2; 0 where it is not satisfied.
    pub stored_percent: u32,
    /// So many drives may be lost, whichever they are, and an object of which all fragments are stored can be read.
    pub drives_lost_max: u32,
    /// So many drives may be lost the moment after a put was acknowledged.
    pub drives_lost_at_once_max: u32,
    /// So many whole nodes may be lost, whichever they are.
    pub nodes_lost_max: u32,
    /// So many whole sites may be lost, whichever they are.
    pub sites_lost_max: u32,
}

/// What a store did when it was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeResult {
    /// It keeps the rules that data rests on.
    pub is_usable: bool,
    /// An object is read as it was put, as soon as it was put.
    pub reads_after_put: bool,
    /// Ranges are exact, and end where the object does.
    pub reads_ranges: bool,
    /// An object is listed as soon as it was put.
    pub lists_after_put: bool,
    /// Listings are in the order of bytes, and go on after a name.
    pub lists_in_order: bool,
    /// A deleted object is not read.
    pub deletes: bool,
    /// A deleted object is not listed as soon as it was deleted.
    pub lists_after_delete: bool,
    /// What it makes of a put of what may not be there yet (nothing rests on it): `one_winner`, `several_winners`, `unclear`,
    /// `ignored`, `refused`, `not_offered`.
    pub put_if_absent: String,
    /// The put of a small object.
    pub put_ms: u64,
    /// Its read.
    pub get_ms: u64,
}

/// A backend to be made. `dir` takes `path`, `composite` takes `of` and `preset`, the stores take `remote`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBackend {
    /// Its name.
    pub name: Name,
    /// What it is made of.
    #[serde(rename = "type")]
    pub kind: BackendKind,
    /// Of `dir`: an absolute path on this host, without '..'; made when it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^/([^/\x00-\x1f\x7f-\x9f]+(/[^/\x00-\x1f\x7f-\x9f]+)*/?)?$"),
        length(max = 4000)
    )]
    pub path: Option<String>,
    /// Of a store: which, and who asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteStore>,
    /// Of `composite`: the backends that it is made of, each used by nobody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub of: Vec<Name>,
    /// Of `composite`: an existing preset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Name>,
    /// As a drive: what else is lost when it is. When not given: this host for `dir`, what all drives share for `composite`,
    /// else the backend's own name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9_.:-]{0,127}$"))]
    pub node: Option<String>,
    /// As a drive: where it is. When not given: what all drives share for `composite`, else nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9_.:-]{0,127}$"))]
    pub site: Option<String>,
    /// As a drive: its share beside the others'; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub weight: Option<u32>,
}

/// An object store, and who asks it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoteStore {
    /// `http://` or `https://`, without a user. Of `swift` its authentication: ends in `/v1.0`, or in `/v3` for Keystone. Only
    /// `gcs` has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub endpoint: Option<String>,
    /// The bucket or container; it has to be there.
    #[schemars(regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,254}$"))]
    pub container: String,
    /// Of `s3`: `us-east-1` when not given. Of `swift` with Keystone: the first when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}$"))]
    pub region: Option<String>,
    /// What its names begin with, before a '/': `ovs` when not given. Nothing else in the bucket is touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z0-9_-][a-z0-9._-]*(/[a-z0-9_-][a-z0-9._-]*)*$"), length(max = 100))]
    pub prefix: Option<String>,
    /// Of `s3`: the bucket is in the host's name and not in the path, as AWS wants it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bucket_in_host: bool,
    /// What is sent to it, and received from it, per second at most: 64 KiB to 1 TiB. Not bounded when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65_536, max = 1_099_511_627_776_u64))]
    pub bytes_per_s: Option<u64>,
    /// Requests under way at most: 1 to 1024, 32 when not given. A quarter of them is not for puts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub requests_max: Option<u32>,
    /// Of `swift` with Keystone: the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub project: Option<String>,
    /// Of `swift` with Keystone: the domain of user and project; `Default` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub domain: Option<String>,
    /// Where the access key's id (`s3`), the user (`swift`), the account (`azure`) is; `gcs` has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<SecretReference>,
    /// Where the secret key, the password, the account's key, the service account's JSON is.
    pub secret: SecretReference,
}

impl CreateBackend {
    /// A directory.
    pub fn dir(name: Name, path: impl Into<String>) -> CreateBackend {
        CreateBackend { path: Some(path.into()), ..CreateBackend::new(name, BackendKind::Dir) }
    }

    /// Of a kind, with nothing that it takes yet.
    pub fn new(name: Name, kind: BackendKind) -> CreateBackend {
        CreateBackend {
            name,
            kind,
            path: None,
            remote: None,
            of: Vec::new(),
            preset: None,
            node: None,
            site: None,
            weight: None,
        }
    }
}

impl Request for CreateBackend {
    fn check(&self) -> Result<(), Problem> {
        let is_composite = self.kind == BackendKind::Composite;
        let is_remote = !is_composite && self.kind != BackendKind::Dir;
        let kind = serde_json::to_value(self.kind).unwrap_or_default();
        let kind = kind.as_str().unwrap_or_default().to_owned();
        for (field, is_given, is_taken) in [
            ("path", self.path.is_some(), self.kind == BackendKind::Dir),
            ("remote", self.remote.is_some(), is_remote),
            ("of", !self.of.is_empty(), is_composite),
            ("preset", self.preset.is_some(), is_composite),
        ] {
            match (is_given, is_taken) {
                (true, false) => {
                    return Err(Problem::field(field, "it", &format!("not for a backend of type {kind}")));
                }
                (false, true) => {
                    return Err(Problem::field(
                        field,
                        "nothing",
                        &format!("a backend of type {kind} needs it"),
                    ));
                }
                _ => {}
            }
        }
        if let Some(path) = &self.path {
            check_path(path)?;
        }
        if let Some(remote) = &self.remote {
            check_remote(self.kind, remote)?;
        }
        if self.of.len() > 256 {
            return Err(Problem::field("of", self.of.len(), "at most 256 backends"));
        }
        for (number, drive) in self.of.iter().enumerate() {
            if *drive == self.name {
                return Err(Problem::field("of", drive, "other backends: none is made of itself"));
            }
            if self.of[..number].contains(drive) {
                return Err(Problem::field("of", drive, "each backend once"));
            }
        }
        for (field, label) in [("node", &self.node), ("site", &self.site)] {
            if let Some(label) = label {
                check_word(field, label, 128)?;
            }
        }
        match self.weight {
            Some(weight) if !(1..=1_000_000).contains(&weight) => {
                Err(Problem::field("weight", weight, "1 to 1000000"))
            }
            _ => Ok(()),
        }
    }
}

impl Request for AddDrive {}

impl Request for RemoveDriveQuery {
    fn check(&self) -> Result<(), Problem> {
        match (self.lost, self.accept_loss) {
            (false, true) => Err(Problem::field("accept_loss", "true", "with lost alone")),
            _ => Ok(()),
        }
    }
}

fn check_path(text: &str) -> Result<(), Problem> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && plain && text.len() <= 4000 && !text.contains(char::is_control) {
        return Ok(());
    }
    Err(Problem::field("path", text, "an absolute path of at most 4000 bytes, without '..'"))
}

fn check_word(field: &str, text: &str, length_max: usize) -> Result<(), Problem> {
    let is_good = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '.' | '_' | '-')
            || c == ':' && matches!(field, "node" | "site")
    };
    if text.len() <= length_max
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(is_good)
    {
        return Ok(());
    }
    let allowed = format!("1 to {length_max} letters, digits, '.', '_' and '-', the first a letter or digit");
    Err(Problem::field(field, text, &allowed))
}

fn check_remote(kind: BackendKind, remote: &RemoteStore) -> Result<(), Problem> {
    let is = |one: BackendKind| kind == one;
    let missing = |field: &str| Err(Problem::field(field, "nothing", "this type of backend needs it"));
    check_word("container", &remote.container, 255)?;
    match &remote.endpoint {
        None if !is(BackendKind::Gcs) => return missing("endpoint"),
        // It may hold a password: it is not shown.
        Some(endpoint) if !is_plain_url(endpoint) => {
            let detail = "endpoint: what was given is not allowed: http:// or https:// and a host, without user, query and fragment";
            return Err(Problem::new(crate::ProblemKind::Invalid, detail).with("field", "endpoint"));
        }
        _ => {}
    }
    match (&remote.user, is(BackendKind::Gcs)) {
        (None, false) => return missing("user"),
        (Some(_), true) => {
            return Err(Problem::field("user", "it", "not for gcs: the service account's JSON says it"));
        }
        _ => {}
    }
    if let Some(region) = &remote.region {
        check_word("region", region, 128)?;
        if !(is(BackendKind::S3) || is(BackendKind::Swift) && remote.project.is_some()) {
            return Err(Problem::field("region", region, "for s3, and for swift with a project, alone"));
        }
    }
    if remote.bucket_in_host && !is(BackendKind::S3) {
        return Err(Problem::field("bucket_in_host", "true", "for s3 alone"));
    }
    let is_label = |name: &str| name.len() <= 63 && !name.contains(['.', '_']) && !name.ends_with('-');
    if remote.bucket_in_host && !is_label(&remote.container) {
        let allowed = "with bucket_in_host at most 63 letters, digits and '-', the last a letter or digit";
        return Err(Problem::field("container", &remote.container, allowed));
    }
    match (remote.bytes_per_s, remote.requests_max) {
        (Some(bytes), _) if !(64 << 10..=1 << 40).contains(&bytes) => {
            return Err(Problem::field("bytes_per_s", bytes, "64KiB to 1TiB"));
        }
        (_, Some(requests)) if !(1..=1024).contains(&requests) => {
            return Err(Problem::field("requests_max", requests, "1 to 1024"));
        }
        _ => {}
    }
    if (remote.project.is_some() || remote.domain.is_some()) && !is(BackendKind::Swift) {
        return Err(Problem::field("project", "it", "for swift alone"));
    }
    if remote.domain.is_some() && remote.project.is_none() {
        return Err(Problem::field("domain", "it", "with a project alone"));
    }
    for (field, text) in [("project", &remote.project), ("domain", &remote.domain)] {
        super::check_text(field, text.as_deref().unwrap_or_default(), 255)?;
    }
    match &remote.prefix {
        Some(prefix) if !is_prefix(prefix) => Err(Problem::field(
            "prefix",
            prefix,
            "at most 100 small letters, digits, '.', '_' and '-', in parts with '/' between that begin with no dot",
        )),
        _ => Ok(()),
    }
}

fn is_plain_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_odd = |c: char| matches!(c, '@' | '?' | '#') || c.is_whitespace() || c.is_control();
    url.len() <= 1000 && rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(is_odd))
}

fn is_prefix(prefix: &str) -> bool {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    prefix.len() <= 100
        && prefix
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(is_good))
}

#[cfg(test)]
mod tests;
