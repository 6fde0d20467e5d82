//! OpenDAL's operators: one for each store, and for Swift a new one with each token.

use crate::{
    Credentials, RemoteKind, RemoteStore, Secret,
    checksum::base64,
    failure::Failure,
    http::{Http, HttpError},
    pace::Allowance,
    redact::Redactor,
    store::is_plain_url,
    swift,
};
use opendal::{HttpTransporter, OperationContext, Operator, services};
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex, time::Instant};

/// An operator, and which of all that there were.
#[derive(Clone)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) operator: Operator,
}

/// See the module.
pub(crate) struct Operators {
    store: RemoteStore,
    credentials: Credentials,
    http: Http,
    current: Mutex<Current>,
    /// Of the credentials and of the last token.
    redactor: std::sync::Mutex<Redactor>,
}

/// A login that failed is not tried again for so long: by all who wait, it would be as often as a wrong password locks a user out.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// One that came to no answer.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Current {
    number: u64,
    /// `None` until a token is there, and when it is not good any more.
    operator: Option<Operator>,
    token: Option<Secret>,
    /// Until when a failed login is everybody's.
    failed: Option<(Instant, Failure)>,
}

impl Operators {
    /// Asks nobody anything yet. The error is OpenDAL's, about the description.
    pub(crate) fn new(store: RemoteStore, credentials: Credentials, http: Http) -> Result<Operators, String> {
        let operator = match &store.kind {
            RemoteKind::Swift { .. } => None,
            _ => Some(build(&store.kind, &credentials, None, &http)?),
        };
        let current = Mutex::new(Current { operator, ..Current::default() });
        let redactor = std::sync::Mutex::new(http.redactor().clone());
        Ok(Operators { store, credentials, http, current, redactor })
    }

    /// The one to ask now. Who comes while a token is asked for waits for that one, and is told the same if there is none.
    pub(crate) async fn current(&self) -> Result<Numbered, Failure> {
        let mut current = self.current.lock().await;
        if let Some(operator) = &current.operator {
            return Ok(Numbered { number: current.number, operator: operator.clone() });
        }
        if let Some((until, failure)) = &current.failed
            && Instant::now() < *until
        {
            return Err(failure.clone());
        }
        match self.log_in().await {
            Ok((token, operator)) => {
                let mut redactor = self.http.redactor().clone();
                redactor.add(token.reveal());
                *self.redactor.lock().unwrap_or_else(PoisonError::into_inner) = redactor;
                let number = current.number + 1;
                let token = Some(token);
                *current = Current { number, operator: Some(operator.clone()), token, failed: None };
                Ok(Numbered { number, operator })
            }
            Err(failure) => {
                let pause = if matches!(failure, Failure::Busy(_)) { BUSY_PAUSE } else { REFUSED_PAUSE };
                current.failed = Some((Instant::now() + pause, failure.clone()));
                Err(failure)
            }
        }
    }

    async fn log_in(&self) -> Result<(Secret, Operator), Failure> {
        let RemoteKind::Swift { auth, project, storage, .. } = &self.store.kind else {
            return Err(Failure::Refused("no operator".to_owned()));
        };
        let login = swift::log_in(&self.http, auth, project.as_ref(), &self.credentials).await;
        let mut login = login.map_err(|error| match error {
            HttpError::Status { code: 401, text } => {
                Failure::Refused(format!("HTTP 401 {text}: user or password is wrong"))
            }
            error => Failure::from(error),
        })?;
        match storage {
            Some(storage) => login.storage_url.clone_from(storage),
            None => check_storage(auth, &login.storage_url)
                .map_err(|reason| Failure::Refused(reason.to_owned()))?,
        }
        let operator =
            build(&self.store.kind, &self.credentials, Some(&login), &self.http).map_err(Failure::Refused)?;
        Ok((login.token, operator))
    }

    /// The same, for the requests of one operation.
    pub(crate) fn during(&self, operator: Operator, operation: Arc<Allowance>) -> Operator {
        with_http(operator, self.http.during(operation))
    }

    /// The store did not take the token of that operator: can there be another? No, where there are no tokens.
    pub(crate) async fn expire(&self, number: u64) -> bool {
        let mut current = self.current.lock().await;
        if current.token.is_some() && current.number == number {
            current.operator = None;
        }
        current.token.is_some()
    }

    /// For what is said at last: of OpenDAL's words nobody has taken anything out yet.
    pub(crate) fn redactor(&self) -> Redactor {
        self.redactor.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where a login sends us with its token. It is not shown: it may hold anything.
fn check_storage(auth: &str, storage: &str) -> Result<(), &'static str> {
    if !is_plain_url(storage) {
        return Err(
            "the login names a storage URL that is no http:// or https:// URL without user, query and fragment",
        );
    }
    if auth.starts_with("https://") && !storage.starts_with("https://") {
        return Err("the login is by https:// and names a storage URL with http://");
    }
    Ok(())
}

/// The prefix is no root of OpenDAL's: it cuts that off whatever a listing names, looking or not.
fn build(
    kind: &RemoteKind,
    credentials: &Credentials,
    login: Option<&swift::Login>,
    http: &Http,
) -> Result<Operator, String> {
    let (name, secret) = (credentials.name.reveal(), credentials.secret.reveal());
    let built = match kind {
        RemoteKind::S3 { endpoint, region, bucket, bucket_in_host } => {
            let s3 = services::S3::default().endpoint(endpoint).region(region).bucket(bucket);
            // What comes to the store in another way than it was sent is refused there.
            let s3 = s3.checksum_algorithm("md5");
            let s3 = if *bucket_in_host { s3.enable_virtual_host_style() } else { s3 };
            // Nothing from the environment, the home directory or a cloud's metadata server.
            let s3 =
                s3.access_key_id(name).secret_access_key(secret).disable_config_load().disable_ec2_metadata();
            Operator::new(s3)
        }
        RemoteKind::Swift { container, .. } => {
            let login = login.ok_or("no token")?;
            let swift = services::Swift::default().endpoint(&login.storage_url).container(container);
            Operator::new(swift.token(login.token.reveal()))
        }
        RemoteKind::Gcs { endpoint, bucket } => {
            let gcs = services::Gcs::default().bucket(bucket).credential(&base64(secret.as_bytes()));
            let gcs = endpoint.iter().fold(gcs, |gcs, endpoint| gcs.endpoint(endpoint));
            Operator::new(gcs.disable_config_load().disable_vm_metadata())
        }
        RemoteKind::Azblob { endpoint, container } => {
            let azblob = services::Azblob::default().endpoint(endpoint).container(container);
            Operator::new(azblob.account_name(name).account_key(secret))
        }
    };
    // OpenDAL's text may name what it was given.
    let operator = built.map_err(|error| error.kind().to_string())?;
    Ok(with_http(operator, http.clone()))
}

fn with_http(operator: Operator, http: Http) -> Operator {
    operator.with_context(OperationContext::new().with_http_transport(HttpTransporter::new(http)))
}

#[cfg(test)]
mod tests {
    use super::check_storage;

    fn check(auth: &str, storage: &str, expected: bool) {
        assert_eq!(check_storage(auth, storage).is_ok(), expected, "{auth} {storage}");
    }

    #[test]
    fn a_login_leads_to_a_plain_url_and_never_from_https_to_http() {
        check("http://a/v3", "http://b:80/v1/AUTH_x", true);
        check("http://a/v3", "https://b/v1/AUTH_x", true);
        check("https://a/v3", "https://b/v1/AUTH_x", true);
        check("https://a/v3", "http://b/v1/AUTH_x", false);
        for bad in
            ["", "b/v1", "ftp://b", "http://", "http://me:word@b", "http://b?x", "http://b#x", "http://b\n"]
        {
            check("http://a/v3", bad, false);
        }
    }
}
