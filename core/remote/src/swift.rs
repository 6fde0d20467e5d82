//! A Swift token: TempAuth's (Ceph has the same), or Keystone's.
//!
//! OpenDAL takes a token as it is and forgets that it expires. Who renews it: `operators.rs`.

use crate::{Credentials, KeystoneProject, Secret, http::Http, http::HttpError};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use opendal::Buffer;
use serde::Deserialize;
use serde_json::json;

/// What a store gives to those it knows.
pub(crate) struct Login {
    pub(crate) storage_url: String,
    pub(crate) token: Secret,
}

/// Asks for a token.
pub(crate) async fn log_in(
    http: &Http,
    auth: &str,
    project: Option<&KeystoneProject>,
    credentials: &Credentials,
) -> Result<Login, HttpError> {
    match project {
        None => temp_auth(http, auth, credentials).await,
        Some(project) => keystone(http, auth, project, credentials).await,
    }
}

/// OpenStack Swift, "Auth System", v1: two headers there, two back.
async fn temp_auth(http: &Http, auth: &str, credentials: &Credentials) -> Result<Login, HttpError> {
    let request = Request::get(auth)
        .header("X-Auth-User", sensitive(credentials.name.reveal())?)
        .header("X-Auth-Key", sensitive(credentials.secret.reveal())?)
        .body(Buffer::new());
    let answer = exchange(http, request).await?;
    Ok(Login {
        storage_url: text_of(answer.headers(), "x-storage-url")?,
        token: Secret::new(text_of(answer.headers(), "x-auth-token")?),
    })
}

/// OpenStack Identity API v3, "Password authentication with scoped authorization".
async fn keystone(
    http: &Http,
    auth: &str,
    project: &KeystoneProject,
    credentials: &Credentials,
) -> Result<Login, HttpError> {
    let domain = json!({ "name": project.domain });
    let user = json!({
        "name": credentials.name.reveal(), "domain": domain, "password": credentials.secret.reveal(),
    });
    let body = json!({ "auth": {
        "identity": { "methods": ["password"], "password": { "user": user } },
        "scope": { "project": { "name": project.name, "domain": domain } },
    }});
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{}/auth/tokens", auth.trim_end_matches('/')))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Buffer::from(body.to_string()));
    let answer = exchange(http, request).await?;
    let token = Secret::new(text_of(answer.headers(), "x-subject-token")?);
    let catalog =
        serde_json::from_slice::<KeystoneAnswer>(answer.body()).ok().map(|answer| answer.token.catalog);
    let endpoints = catalog.into_iter().flatten().filter(|service| service.kind == "object-store");
    let endpoint = endpoints.flat_map(|service| service.endpoints).find(|endpoint| {
        endpoint.interface == "public"
            && project.region.as_ref().is_none_or(|region| endpoint.region.as_ref() == Some(region))
    });
    let storage_url =
        endpoint.ok_or_else(|| refused("the catalogue has no public endpoint of an object-store"))?.url;
    Ok(Login { storage_url, token })
}

#[derive(Deserialize)]
struct KeystoneAnswer {
    token: KeystoneToken,
}

#[derive(Deserialize)]
struct KeystoneToken {
    catalog: Vec<KeystoneService>,
}

#[derive(Deserialize)]
struct KeystoneService {
    #[serde(rename = "type")]
    kind: String,
    endpoints: Vec<KeystoneEndpoint>,
}

#[derive(Deserialize)]
struct KeystoneEndpoint {
    interface: String,
    #[serde(default)]
    region: Option<String>,
    url: String,
}

async fn exchange(http: &Http, request: http::Result<Request<Buffer>>) -> Result<Response<Bytes>, HttpError> {
    // What is wrong with it may be a part of it.
    let request = request.map_err(|_| refused("an address that is none"))?;
    let answer = http.exchange(request).await?;
    match answer.status() {
        status if status.is_success() => Ok(answer),
        status => Err(HttpError::Status { code: status.as_u16(), text: "of the authentication".to_owned() }),
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, HttpError> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| refused("a user or password that HTTP cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn text_of(headers: &HeaderMap, name: &str) -> Result<String, HttpError> {
    let value = headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty());
    value.map(str::to_owned).ok_or_else(|| refused(&format!("no {name} in the answer of the authentication")))
}

fn refused(reason: &str) -> HttpError {
    HttpError::Wrong(reason.to_owned())
}
