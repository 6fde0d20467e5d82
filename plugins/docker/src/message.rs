//! The words of Docker's volume plugin protocol (docs.docker.com, "Docker volume plugins"; Docker 20.10, volume driver
//! API 1.x): `POST /VolumeDriver.Mount` with a JSON body, answered with JSON.
//!
//! A request is hostile until parsed: names are checked here, since Docker checks none for a plugin. Keys that are not
//! known are passed over, as Docker may add some.

use crate::refs::MountId;
use ovs_units::Name;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// What Docker asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Which protocols are spoken.
    Activate,
    /// Whether volumes are this host's own.
    Capabilities,
    /// A new volume.
    Create(Name, BTreeMap<String, String>),
    /// A volume is no longer wanted.
    Remove(Name),
    /// A container starts to use it.
    Mount(Name, MountId),
    /// A container has used it.
    Unmount(Name, MountId),
    /// Where it is mounted.
    Path(Name),
    /// What it is.
    Get(Name),
    /// What there is.
    List,
}

/// Why a request could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No such method.
    #[error("unknown method {0:?}")]
    Method(String),
    /// Not the JSON that the method takes.
    #[error("{method}: {problem}")]
    Body {
        /// The method.
        method: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// A volume as Docker shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where containers find it on this host; empty: not mounted.
    pub mountpoint: String,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
    /// What `docker volume inspect` shows.
    pub status: VolumeStatus,
}

/// The part of a volume that is ours to fill; shown verbatim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VolumeStatus {
    /// Of the vDisk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// What it occupies on the backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// How many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
    /// `ext4` or `xfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fstype: Option<String>,
    /// The vPool's name.
    pub vpool: String,
    /// The vDisk's UUID.
    pub vdisk: String,
    /// How the vDisk is.
    pub state: String,
    /// References on this host.
    pub mounts: u64,
    /// What carries it on this host: `/dev/nbd3`, `/dev/loop3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// What Docker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// The protocols.
    Activate {
        /// Their names.
        #[serde(rename = "Implements")]
        implements: [&'static str; 1],
    },
    /// The scope.
    Capabilities {
        /// In an object of its own.
        #[serde(rename = "Capabilities")]
        capabilities: Capabilities,
    },
    /// Done.
    #[serde(rename_all = "PascalCase")]
    Done {
        /// Empty.
        err: &'static str,
    },
    /// Where it is mounted.
    #[serde(rename_all = "PascalCase")]
    Mountpoint {
        /// The path, or nothing.
        mountpoint: String,
        /// Empty.
        err: &'static str,
    },
    /// One volume.
    #[serde(rename_all = "PascalCase")]
    Volume {
        /// It.
        volume: Box<Volume>,
        /// Empty.
        err: &'static str,
    },
    /// Several.
    #[serde(rename_all = "PascalCase")]
    Volumes {
        /// They.
        volumes: Vec<Volume>,
        /// Empty.
        err: &'static str,
    },
}

/// See [`Answer::Capabilities`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Capabilities {
    /// `local`: a volume of the same name on another host is another volume.
    pub scope: &'static str,
}

/// An error as Docker passes it to its user.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ErrorBody<'a> {
    /// The text.
    pub err: &'a str,
}

impl Answer {
    /// To Activate.
    pub fn activate() -> Answer {
        Answer::Activate { implements: ["VolumeDriver"] }
    }

    /// To Capabilities.
    pub fn capabilities() -> Answer {
        Answer::Capabilities { capabilities: Capabilities { scope: "local" } }
    }

    /// To Create, Remove and Unmount.
    pub fn done() -> Answer {
        Answer::Done { err: "" }
    }

    /// To Mount and Path.
    pub fn mountpoint(mountpoint: String) -> Answer {
        Answer::Mountpoint { mountpoint, err: "" }
    }

    /// To Get.
    pub fn volume(volume: Volume) -> Answer {
        Answer::Volume { volume: Box::new(volume), err: "" }
    }

    /// To List.
    pub fn volumes(volumes: Vec<Volume>) -> Answer {
        Answer::Volumes { volumes, err: "" }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Body {
    name: String,
    #[serde(default, rename = "ID")]
    id: String,
    #[serde(default)]
    opts: Option<BTreeMap<String, String>>,
}

impl Request {
    /// From the path of the URL and the body.
    pub fn parse(path: &str, body: &[u8]) -> Result<Request, RequestError> {
        let named = |method: &'static str| -> Result<(Name, Body), RequestError> {
            let error = |problem: String| RequestError::Body { method, problem };
            if body.is_empty() {
                // Seen with Docker 20.10: it sends a request whose connection broke again, but not its body.
                return Err(error(
                    "the request was cut off by a restart of the plugin; try again".to_owned(),
                ));
            }
            let body: Body =
                serde_json::from_slice(body).map_err(|e| error(clip(&format!("not understood: {e}"))))?;
            let name = Name::new(&body.name).map_err(|e| error(format!("volume {e}")))?;
            Ok((name, body))
        };
        let with_id = |method| {
            let (name, body) = named(method)?;
            let id =
                MountId::new(&body.id).map_err(|e| RequestError::Body { method, problem: e.to_string() })?;
            Ok((name, id))
        };
        match path {
            "/Plugin.Activate" => Ok(Request::Activate),
            "/VolumeDriver.Capabilities" => Ok(Request::Capabilities),
            "/VolumeDriver.Create" => {
                named("Create").map(|(name, body)| Request::Create(name, body.opts.unwrap_or_default()))
            }
            "/VolumeDriver.Remove" => named("Remove").map(|(name, _)| Request::Remove(name)),
            "/VolumeDriver.Mount" => with_id("Mount").map(|(name, id)| Request::Mount(name, id)),
            "/VolumeDriver.Unmount" => with_id("Unmount").map(|(name, id)| Request::Unmount(name, id)),
            "/VolumeDriver.Path" => named("Path").map(|(name, _)| Request::Path(name)),
            "/VolumeDriver.Get" => named("Get").map(|(name, _)| Request::Get(name)),
            "/VolumeDriver.List" => Ok(Request::List),
            other => Err(RequestError::Method(clip(other))),
        }
    }
}

/// An error may quote what was sent, which may be long.
fn clip(text: &str) -> String {
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[track_caller]
    fn check(path: &str, body: &str, expected: Request) {
        assert_eq!(Request::parse(path, body.as_bytes()), Ok(expected), "{path} {body}");
    }

    #[track_caller]
    fn check_refused(path: &str, body: &[u8], part: &str) {
        let error = Request::parse(path, body).expect_err("refused").to_string();
        assert!(error.contains(part) && error.len() < 700, "{path}: {error}");
    }

    #[test]
    fn what_docker_sends() {
        check("/Plugin.Activate", "", Request::Activate);
        check("/VolumeDriver.Capabilities", "{}", Request::Capabilities);
        check("/VolumeDriver.List", "{}", Request::List);
        check("/VolumeDriver.Get", r#"{"Name":"v1"}"#, Request::Get(name("v1")));
        check("/VolumeDriver.Path", r#"{"Name":"v1"}"#, Request::Path(name("v1")));
        check("/VolumeDriver.Remove", r#"{"Name":"v1"}"#, Request::Remove(name("v1")));
        let opts = BTreeMap::from([("size".to_owned(), "1G".to_owned())]);
        check(
            "/VolumeDriver.Create",
            r#"{"Name":"v1","Opts":{"size":"1G"}}"#,
            Request::Create(name("v1"), opts),
        );
        for body in
            [r#"{"Name":"v1"}"#, r#"{"Name":"v1","Opts":null}"#, r#"{"Name":"v1","Opts":{},"New":[1]}"#]
        {
            check("/VolumeDriver.Create", body, Request::Create(name("v1"), BTreeMap::new()));
        }
        let id = MountId::new("ab").unwrap();
        check("/VolumeDriver.Mount", r#"{"Name":"v1","ID":"ab"}"#, Request::Mount(name("v1"), id.clone()));
        check("/VolumeDriver.Unmount", r#"{"Name":"v1","ID":"ab"}"#, Request::Unmount(name("v1"), id));
        check(
            "/VolumeDriver.Mount",
            r#"{"Name":"v1"}"#,
            Request::Mount(name("v1"), MountId::new("").unwrap()),
        );
    }

    #[test]
    fn what_nobody_should_send() {
        for path in ["/", "", "/VolumeDriver.Format", "/volumedriver.get", "/VolumeDriver.Get/", "/../x"] {
            check_refused(path, br#"{"Name":"v1"}"#, "unknown method");
        }
        let deep = "[".repeat(200_000);
        check_refused("/VolumeDriver.Mount", b"", "try again");
        let bodies: [&[u8]; 11] = [
            b"{",
            b"null",
            b"[]",
            b"\"v1\"",
            b"{\"Name\":1}",
            b"{\"Name\":[\"v1\"]}",
            b"{\"Name\":\"v1\"}x",
            b"{\"Name\":\"v1\",\"Opts\":[]}",
            b"{\"Name\":\"v1\",\"Opts\":{\"size\":1}}",
            b"\xff\xfe",
            deep.as_bytes(),
        ];
        for body in bodies {
            check_refused("/VolumeDriver.Create", body, "not understood");
        }
        check_refused("/VolumeDriver.Mount", br#"{"Name":"v1","ID":7}"#, "not understood");
        let long = format!(r#"{{"Name":"v1","ID":"{}"}}"#, "x".repeat(1000));
        check_refused("/VolumeDriver.Mount", long.as_bytes(), "256");
    }

    #[test]
    fn names_are_checked_since_docker_does_not() {
        for bad in
            ["", ".", "..", ".x", "../../etc/x", "a/b", "/etc", "a b", "-x", "a\\u0000", "\\u00e9", "a\\n"]
        {
            for method in ["Create", "Remove", "Mount", "Unmount", "Path", "Get"] {
                let body = format!(r#"{{"Name":"{bad}"}}"#);
                check_refused(&format!("/VolumeDriver.{method}"), body.as_bytes(), "not allowed");
            }
        }
        let long = format!(r#"{{"Name":"{}"}}"#, "x".repeat(1 << 19));
        check_refused("/VolumeDriver.Create", long.as_bytes(), "not allowed");
    }

    #[test]
    fn answers_as_docker_reads_them() {
        let json = |answer: &Answer| serde_json::to_string(answer).unwrap();
        assert_eq!(json(&Answer::activate()), r#"{"Implements":["VolumeDriver"]}"#);
        assert_eq!(json(&Answer::capabilities()), r#"{"Capabilities":{"Scope":"local"}}"#);
        assert_eq!(json(&Answer::done()), r#"{"Err":""}"#);
        assert_eq!(json(&Answer::mountpoint("/x".into())), r#"{"Mountpoint":"/x","Err":""}"#);
        let status = VolumeStatus {
            size: Some("1GiB".into()),
            used: None,
            snapshots: Some(2),
            fstype: None,
            vpool: "default".into(),
            vdisk: "u".into(),
            state: "ok".into(),
            mounts: 1,
            device: Some("/dev/nbd3".into()),
        };
        let volume =
            Volume { name: "v".into(), mountpoint: String::new(), created_at: Some("t".into()), status };
        let status = r#"{"size":"1GiB","snapshots":2,"vpool":"default","vdisk":"u","state":"ok","mounts":1,"device":"/dev/nbd3"}"#;
        let expected = format!(r#"{{"Name":"v","Mountpoint":"","CreatedAt":"t","Status":{status}}}"#);
        assert_eq!(json(&Answer::volume(volume.clone())), format!(r#"{{"Volume":{expected},"Err":""}}"#));
        assert_eq!(json(&Answer::volumes(vec![volume])), format!(r#"{{"Volumes":[{expected}],"Err":""}}"#));
        assert_eq!(serde_json::to_string(&ErrorBody { err: "no" }).unwrap(), r#"{"Err":"no"}"#);
    }
}
