//! The paths of the admin listener.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /livez`, `GET /readyz` | open to all |
//! | `GET /workers`, `GET /workers/ID` | the fleet, one worker |
//! | `POST /workers/ID/drain`, `/undrain`, `/remove` | as the names say |
//! | `GET /peers` | the other routers |
//! | `POST /reload`, `/upgrade` | the configuration is read again; a new process takes over |

/// What a 404 says.
pub(super) const KNOWN: &str = "known: GET /livez, /readyz, /workers, /workers/ID, /peers; \
     POST /workers/ID/drain, /workers/ID/undrain, /workers/ID/remove, /reload, /upgrade";

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// Shows something.
    Page(Page<'a>),
    /// Does something.
    Act(Act<'a>),
}

/// What can be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Page<'a> {
    Livez,
    Readyz,
    Workers,
    Worker(&'a str),
    Peers,
}

/// What can be done, by POST only and with leave (`access.rs`). A further act is a variant here, a
/// path below, and an arm of `Admin::act`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Act<'a> {
    Drain(&'a str),
    Undrain(&'a str),
    Remove(&'a str),
    Reload,
    Upgrade,
}

impl Page<'_> {
    /// Whether orchestrators may ask without a token.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Page::Livez | Page::Readyz)
    }
}

impl<'a> Route<'a> {
    /// Reads a path. Ids of workers need no escaping, so none is undone.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        match path {
            "/livez" => return Some(Self::Page(Page::Livez)),
            "/readyz" => return Some(Self::Page(Page::Readyz)),
            "/workers" => return Some(Self::Page(Page::Workers)),
            "/peers" => return Some(Self::Page(Page::Peers)),
            "/reload" => return Some(Self::Act(Act::Reload)),
            "/upgrade" => return Some(Self::Act(Act::Upgrade)),
            _ => {}
        }
        let of_worker = path.strip_prefix("/workers/")?;
        match of_worker.split_once('/') {
            None if of_worker.is_empty() => None,
            None => Some(Self::Page(Page::Worker(of_worker))),
            Some((id, "drain")) => Some(Self::Act(Act::Drain(id))),
            Some((id, "undrain")) => Some(Self::Act(Act::Undrain(id))),
            Some((id, "remove")) => Some(Self::Act(Act::Remove(id))),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_where_they_say() {
        let act = |act| Some(Route::Act(act));
        let page = |page| Some(Route::Page(page));
        assert_eq!(Route::of("/livez"), page(Page::Livez));
        assert_eq!(Route::of("/workers"), page(Page::Workers));
        assert_eq!(Route::of("/peers"), page(Page::Peers));
        assert_eq!(Route::of("/reload"), act(Act::Reload));
        assert_eq!(Route::of("/upgrade"), act(Act::Upgrade));
        assert_eq!(Route::of("/workers/10.0.0.1:8000"), page(Page::Worker("10.0.0.1:8000")));
        assert_eq!(Route::of("/workers/w0/drain"), act(Act::Drain("w0")));
        assert_eq!(Route::of("/workers/drain/undrain"), act(Act::Undrain("drain")));
        assert_eq!(Route::of("/workers/w0/remove"), act(Act::Remove("w0")));
        for other in
            ["", "/", "/Livez", "/livez/", "/workers/", "/workers/w0/", "/workers/w0/drain/", "/x"]
        {
            assert_eq!(Route::of(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_orchestrators_ask_is_open() {
        assert!(Page::Livez.is_open() && Page::Readyz.is_open());
        assert!(!Page::Workers.is_open() && !Page::Worker("w0").is_open());
    }
}
