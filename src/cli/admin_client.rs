//! Asks the admin listener of a running warmroute.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use super::EXIT_USAGE;

/// Names the token without writing it into a command line, which others can read.
const TOKEN_ENV: &str = "WARMROUTE_ADMIN_TOKEN";
/// A listener that is there accepts at once.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A whole answer: an upgrade may take `timeouts.upgrade_s`.
const ANSWER_WITHIN: Duration = Duration::from_mins(10);
/// A large fleet is some megabytes.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Says which warmroute is meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct AdminArgs {
    /// Its configuration file: `admin.listen` and `admin.token` are taken from it
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// Its admin listener; a token is taken from the environment: WARMROUTE_ADMIN_TOKEN
    #[arg(long, value_name = "http://HOST:PORT")]
    admin: Option<String>,
}

/// An admin listener, and what it wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTarget {
    /// `http://HOST:PORT`.
    base: String,
    token: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The file cannot be read, or names no listener.
    #[error("{}: {problem}; {remedy}", .path.display())]
    Conf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The address is none.
    #[error("--admin: `{0}`: not an address; write http://HOST:PORT")]
    Address(String),
    /// Nothing came back.
    #[error("{url}: {problem}; does warmroute run, with this admin.listen?")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        problem: String,
    },
    /// What came back was not from an admin listener.
    #[error("{url}: the answer (status {status}) is no JSON; is this the address of admin.listen?")]
    NotAdmin {
        /// What was asked.
        url: String,
        /// Its status.
        status: u16,
    },
    /// The listener said no.
    #[error("{message}")]
    Refused {
        /// Its reason.
        message: String,
    },
}

impl AdminError {
    /// The command's exit status.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Conf { .. } | Self::Address(_) => ExitCode::from(EXIT_USAGE),
            Self::Unreachable { .. } | Self::NotAdmin { .. } | Self::Refused { .. } => {
                ExitCode::FAILURE
            }
        }
    }
}

impl AdminTarget {
    /// The listener the arguments name, with the token of the environment or of the file.
    ///
    /// # Errors
    /// When they name none.
    pub fn of(args: &AdminArgs) -> Result<Self, AdminError> {
        let mut target = match (&args.conf, &args.admin) {
            (Some(conf), _) => Self::from_conf(conf)?,
            (None, admin) => Self::from_url(admin.as_deref().unwrap_or_default())?,
        };
        if let Some(token) = std::env::var(TOKEN_ENV).ok().filter(|token| !token.is_empty()) {
            target.token = Some(token);
        }
        Ok(target)
    }

    fn from_conf(path: &Path) -> Result<Self, AdminError> {
        let bad = |problem: String, remedy| AdminError::Conf { path: path.into(), problem, remedy };
        let text = std::fs::read_to_string(path)
            .map_err(|error| bad(error.to_string(), "name a readable file"))?;
        Self::from_yaml(&text).map_err(|problem| bad(problem, "or use --admin http://HOST:PORT"))
    }

    /// Only these two keys matter: a file that `run` would refuse must not keep an operator from
    /// the process that runs.
    fn from_yaml(text: &str) -> Result<Self, String> {
        let file: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)
            .map_err(|error| format!("not YAML ({})", error.to_string().replace('\n', " ")))?;
        let key = |key: &str| file.get("admin")?.get(key)?.as_str();
        let listen = key("listen").ok_or("has no admin.listen")?;
        let addr: SocketAddr =
            listen.parse().map_err(|_| format!("admin.listen: `{listen}`: not an address"))?;
        Ok(Self {
            base: format!("http://{}", reachable(addr)),
            token: key("token").map(Into::into),
        })
    }

    fn from_url(text: &str) -> Result<Self, AdminError> {
        let bad = || AdminError::Address(text.to_owned());
        let url = url::Url::parse(text).map_err(|_| bad())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let named = url.host_str().is_some_and(|host| !host.is_empty());
        if url.scheme() != "http" || !plain || !named || !url.username().is_empty() {
            return Err(bad());
        }
        Ok(Self { base: text.trim_end_matches('/').to_owned(), token: None })
    }
}

/// Where an address that may mean all of a host's own can be reached on this host.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        addr.set_ip(match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    addr
}

/// GET of a page: status and JSON, whatever the status.
///
/// # Errors
/// When there is no JSON.
pub fn get(target: &AdminTarget, path: &str) -> Result<(u16, Value), AdminError> {
    exchange(target, "GET", path)
}

/// POST of an act: status and JSON, whatever the status.
///
/// # Errors
/// When there is no JSON. Whether the act was done is not known then.
pub fn post(target: &AdminTarget, path: &str) -> Result<(u16, Value), AdminError> {
    exchange(target, "POST", path)
}

/// The JSON of an answer that says yes.
///
/// # Errors
/// With the listener's reason.
pub fn accepted((status, body): (u16, Value)) -> Result<Value, AdminError> {
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let reason = body["error"]["message"].as_str().map(ToOwned::to_owned);
    let mut message = reason.unwrap_or_else(|| format!("refused with status {status}"));
    if status == 401 {
        message = format!("{message}: set {TOKEN_ENV}, or use the --conf that has it");
    }
    Err(AdminError::Refused { message })
}

fn exchange(target: &AdminTarget, method: &str, path: &str) -> Result<(u16, Value), AdminError> {
    let url = format!("{}{path}", target.base);
    let unreachable = |problem: String| AdminError::Unreachable { url: url.clone(), problem };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(CONNECT_WITHIN))
        .timeout_global(Some(ANSWER_WITHIN))
        .http_status_as_error(false)
        .max_redirects(0)
        // What is asked is near; a proxy of the environment is for what is far.
        .proxy(None)
        .build()
        .into();
    let mut request = http::Request::builder().method(method).uri(&url);
    if let Some(token) = &target.token {
        request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(()).map_err(|error| unreachable(error.to_string()))?;
    let mut response = agent.run(request).map_err(|error| unreachable(plain(&error)))?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let body = body.map_err(|error| unreachable(plain(&error)))?;
    match serde_json::from_slice(&body) {
        Ok(json) => Ok((status, json)),
        Err(_) => Err(AdminError::NotAdmin { url, status }),
    }
}

/// An error without the layers it came through.
fn plain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<(String, Option<String>), String> {
        AdminTarget::from_yaml(text).map(|target| (target.base, target.token))
    }

    #[test]
    fn only_the_admin_section_of_the_file_matters() {
        let text = "listne: nowhere\nadmin: {listen: \"127.0.0.1:9900\", token: t, nonsense: 1}";
        assert_eq!(target(text), Ok(("http://127.0.0.1:9900".to_owned(), Some("t".to_owned()))));
        assert_eq!(
            target("admin: {listen: \"0.0.0.0:1\"}"),
            Ok(("http://127.0.0.1:1".to_owned(), None))
        );
        assert_eq!(target("admin: {listen: \"[::]:1\"}"), Ok(("http://[::1]:1".to_owned(), None)));
        for (bad, why) in [
            ("a: [", "not YAML"),
            ("", "no admin.listen"),
            ("admin: 3", "no admin.listen"),
            ("admin: {listen: 3}", "no admin.listen"),
            ("admin: {listen: here}", "not an address"),
        ] {
            let said = target(bad).expect_err(bad);
            assert!(said.contains(why) && !said.contains('\n'), "{bad}: {said}");
        }
    }

    #[test]
    fn an_address_is_an_http_one_without_a_path() {
        let base = |text| AdminTarget::from_url(text).map(|target| target.base);
        assert_eq!(base("http://h:1/").expect("fine"), "http://h:1");
        assert_eq!(base("http://[::1]:1").expect("fine"), "http://[::1]:1");
        for bad in ["", "h:1", "https://h:1", "http://h:1/workers", "http://u@h:1", "http://"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn refusals_are_told_in_the_listeners_words() {
        let json = serde_json::json!({"error": {"message": "no worker `x`"}});
        let said = accepted((404, json)).expect_err("refused").to_string();
        assert_eq!(said, "no worker `x`");
        let said = accepted((500, Value::Null)).expect_err("refused").to_string();
        assert_eq!(said, "refused with status 500");
        let said = accepted((401, Value::Null)).expect_err("refused").to_string();
        assert!(said.contains(TOKEN_ENV), "{said}");
        assert_eq!(accepted((200, Value::Bool(true))).expect("fine"), Value::Bool(true));
    }
}
