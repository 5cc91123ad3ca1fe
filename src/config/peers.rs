//! The other routers of the fleet, and how they are reached.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    ConfigError, file,
    validate::{Checked, readable},
};

const SECRET_CHARS_MIN: usize = 16;
const SUBJECT_BYTES_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 64;
/// What peers told is believed for a second: slower than this it would come and go.
const LOADS_INTERVAL_MS_MAX: u64 = 500;

/// What routers of one fleet share.
#[derive(Debug, Clone)]
pub struct PeersConfig {
    /// Brokers, `nats://` or `tls://`, without user names.
    pub servers: Vec<String>,
    /// How to log in there.
    pub login: Login,
    /// Extra certificate authority, PEM.
    pub ca: Option<PathBuf>,
    /// Where messages are published.
    pub subject: String,
    /// Shared by the routers that understand each other.
    pub secret: SharedSecret,
    /// Our name; made up when absent.
    pub name: Option<String>,
    /// Pause between two accounts of our load.
    pub loads_interval: Duration,
}

/// How to log in to a broker.
#[derive(Clone)]
pub enum Login {
    /// Not at all.
    Open,
    /// With this token.
    Token(String),
    /// With this user name and password.
    User(String, String),
    /// With this credentials file.
    Credentials(PathBuf),
}

/// Never printed.
#[derive(Clone)]
pub struct SharedSecret(Arc<str>);

impl SharedSecret {
    /// The secret itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedSecret(..)")
    }
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "Open",
            Self::Token(_) => "Token(..)",
            Self::User(..) => "User(..)",
            Self::Credentials(_) => "Credentials(..)",
        })
    }
}

pub(super) fn peers(peers: &file::Peers) -> Checked<PeersConfig> {
    let (servers, login) = brokers(peers)?;
    if let Some(ca) = &peers.ca {
        readable("peers.ca", ca)?;
    }
    let interval = peers.loads_interval_ms;
    if !(10..=LOADS_INTERVAL_MS_MAX).contains(&interval) {
        let remedy = format!("write 10 to {LOADS_INTERVAL_MS_MAX}");
        return Err(ConfigError::new("peers.loads_interval_ms", interval, "out of range", remedy));
    }
    Ok(PeersConfig {
        servers,
        login,
        ca: peers.ca.clone(),
        subject: subject(peers.subject.as_deref())?,
        secret: secret(peers)?,
        name: peers.name.as_deref().map(name).transpose()?,
        loads_interval: Duration::from_millis(interval),
    })
}

fn brokers(peers: &file::Peers) -> Checked<(Vec<String>, Login)> {
    let key = "peers.nats";
    let remedy = "write nats://HOST:PORT or tls://HOST:PORT";
    let texts = peers.nats.clone().map(file::OneOrMany::into_vec).unwrap_or_default();
    if texts.is_empty() {
        return Err(ConfigError::new(key, "absent", "no broker", remedy));
    }
    let mut login = Login::Open;
    let mut servers = Vec::new();
    for text in texts {
        // A password may stand in it.
        let bad = |problem: &str| ConfigError::new(key, "(not shown)", problem, remedy);
        let mut url = url::Url::parse(&text).map_err(|_| bad("not a URL"))?;
        if !["nats", "tls"].contains(&url.scheme()) {
            return Err(bad("the scheme is neither nats nor tls"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(bad("no host"));
        }
        if !["", "/"].contains(&url.path()) || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("a broker's URL has no path"));
        }
        let user = percent_decoded(url.username());
        let named = match url.password() {
            Some(password) => Some(Login::User(user, percent_decoded(password))),
            None if user.is_empty() => None,
            None => Some(Login::Token(user)),
        };
        login = named.unwrap_or(login);
        let _ = url.set_username("");
        let _ = url.set_password(None);
        servers.push(url.as_str().trim_end_matches('/').to_owned());
    }
    if let Some(file) = &peers.credentials {
        if !matches!(login, Login::Open) {
            let value = format!("`{}`", file.display());
            let problem = "a login stands in `peers.nats` too";
            let remedy = "give one of them";
            return Err(ConfigError::new("peers.credentials", value, problem, remedy));
        }
        readable("peers.credentials", file)?;
        login = Login::Credentials(file.clone());
    }
    Ok((servers, login))
}

/// User names in URLs are percent encoded.
fn percent_decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn subject(text: Option<&str>) -> Checked<String> {
    let key = "peers.subject";
    let remedy = "write a name of this fleet, such as warmroute.my-fleet";
    let Some(text) = text else {
        return Err(ConfigError::new(key, "absent", "this key is required", remedy));
    };
    let token = |token: &str| {
        !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && !b"*>".contains(&b))
    };
    if text.len() > SUBJECT_BYTES_MAX || text.starts_with('$') || !text.split('.').all(token) {
        return Err(ConfigError::new(key, format!("`{text}`"), "not a subject", remedy));
    }
    Ok(text.to_owned())
}

fn secret(peers: &file::Peers) -> Checked<SharedSecret> {
    let remedy = "write one, such as what `openssl rand -hex 32` prints, the same in every router";
    let (key, text) = match (&peers.secret, &peers.secret_file) {
        (Some(text), None) => ("peers.secret", text.clone()),
        (None, Some(path)) => {
            let bytes = readable("peers.secret_file", path)?;
            let text = String::from_utf8(bytes).unwrap_or_default();
            ("peers.secret_file", text.trim_end().to_owned())
        }
        (None, None) => {
            let problem = "this key or `peers.secret_file` is required";
            return Err(ConfigError::new("peers.secret", "absent", problem, remedy));
        }
        (Some(_), Some(_)) => {
            let problem = "`peers.secret_file` is given too";
            let remedy = "give one of them";
            return Err(ConfigError::new("peers.secret", "(not shown)", problem, remedy));
        }
    };
    if text.chars().count() < SECRET_CHARS_MIN {
        let problem = format!("shorter than {SECRET_CHARS_MIN} characters");
        return Err(ConfigError::new(key, "(not shown)", problem, remedy));
    }
    Ok(SharedSecret(text.into()))
}

fn name(text: &str) -> Checked<String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
    if !(1..=NAME_BYTES_MAX).contains(&text.len()) || !text.bytes().all(fine) {
        let remedy = "use 1 to 64 letters, digits, `.`, `_`, `:` or `-`";
        return Err(ConfigError::new("peers.name", format!("`{text}`"), "not a name", remedy));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(nats: &str) -> file::Peers {
        file::Peers {
            nats: Some(file::OneOrMany::One(nats.to_owned())),
            subject: Some("warmroute.x".to_owned()),
            secret: Some("sixteen letters!".to_owned()),
            ..file::Peers::default()
        }
    }

    #[test]
    fn logins_are_taken_out_of_urls() {
        let of = |nats: &str| {
            let config = peers(&file(nats)).expect("fits");
            let login = match config.login {
                Login::Open => String::new(),
                Login::Token(token) => token,
                Login::User(user, password) => format!("{user} {password}"),
                Login::Credentials(_) => panic!("no file"),
            };
            (config.servers[0].clone(), login)
        };
        let host = "nats://broker:4222".to_owned();
        assert_eq!(of("nats://broker:4222"), (host.clone(), String::new()));
        assert_eq!(of("nats://me:p%40ss+1@broker:4222/"), (host.clone(), "me p@ss+1".to_owned()));
        assert_eq!(of("nats://t0ken@broker:4222"), (host, "t0ken".to_owned()));
        assert_eq!(of("tls://broker"), ("tls://broker".to_owned(), String::new()));
    }

    #[test]
    fn what_is_secret_is_never_shown() {
        for nats in ["nats://me:hunter2@", "http://me:hunter2@x", "nats://me:hunter2@x/path", ":"] {
            let error = peers(&file(nats)).unwrap_err().to_string();
            assert!(error.starts_with("peers.nats: ") && !error.contains("hunter2"), "{error}");
        }
        let short = file::Peers { secret: Some("short".to_owned()), ..file("nats://x") };
        let error = peers(&short).unwrap_err().to_string();
        assert!(error.starts_with("peers.secret: (not shown)"), "{error}");
        let shown = format!("{:?}", peers(&file("nats://me:hunter2@x")).expect("fits"));
        assert!(!shown.contains("hunter2") && !shown.contains("letters"), "{shown}");
    }

    #[test]
    fn what_cannot_run_is_refused_by_its_key() {
        let bad = |change: fn(&mut file::Peers)| {
            let mut file = file("nats://x");
            change(&mut file);
            peers(&file).unwrap_err().key
        };
        assert_eq!(bad(|p| p.nats = None), "peers.nats");
        assert_eq!(bad(|p| p.subject = None), "peers.subject");
        for subject in ["", "a..b", "a.*", ">", "a b", "$SYS.x"] {
            let file = file::Peers { subject: Some(subject.to_owned()), ..file("nats://x") };
            assert_eq!(peers(&file).unwrap_err().key, "peers.subject", "{subject}");
        }
        assert_eq!(bad(|p| p.secret = None), "peers.secret");
        assert_eq!(bad(|p| p.secret_file = Some("/x".into())), "peers.secret");
        assert_eq!(bad(|p| p.name = Some("a b".to_owned())), "peers.name");
        assert_eq!(bad(|p| p.loads_interval_ms = 5), "peers.loads_interval_ms");
        assert_eq!(bad(|p| p.ca = Some("/none/such".into())), "peers.ca");
        assert_eq!(bad(|p| p.credentials = Some("/none/such".into())), "peers.credentials");
    }
}
