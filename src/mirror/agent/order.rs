//! What a file asks for, as the engine is told. Pure: no file is read and nobody is asked.

use std::path::PathBuf;

use super::config::{AgentConfig, Credentials, Fence, ForeignWrites, LeasePolicy, Site};
use super::status::{Problem, ProblemReason};
use crate::mirror::authorize::Writers;
use crate::mirror::config::{Config, Leases, Limits, MirrorId, Policy};
use crate::mirror::connect::{Access, UserName};
use crate::mirror::keyspace::{InvalidKeyspace, Mapping, Side};
use crate::mirror::machine::{Mode, Settings};
use crate::mirror::pace::Pace;
use crate::mirror::run::Order;

/// The engine's order. `resync`: the file asks for a scan that it did not ask for before.
pub fn order(config: &AgentConfig, resync: bool) -> Result<Order, Problem> {
    let (source, target) = sites(config)?;
    let keys = Config {
        mappings: mappings(config, &source.name, &target.name)?,
        ignore: config.ignore.clone(),
        ignore_at: ignore_at(config, &target.name)?,
        leases: match config.leases {
            LeasePolicy::Strip => Leases::Strip,
            LeasePolicy::Skip => Leases::Skip,
            LeasePolicy::Recreate => Leases::Recreate,
        },
    }
    .in_order();
    keys.keyspace().map_err(|error| problem(reason(&error), error.to_string()))?;
    let id = MirrorId::new(&config.id)
        .map_err(|error| problem(ProblemReason::MappingInvalid, error.to_string()))?;
    Ok(Order {
        settings: Settings {
            id,
            config: keys,
            policy: Some(Policy { overwrite: config.overwrite, prune: config.prune }),
            limits: Limits::default().paced(config.limits.keys_per_second),
            epoch: String::new(),
            resync,
            approved: config.requests.resync.clone(),
            mode: Mode::Follow,
            ran: false,
            active: Some(source.name.clone()),
            repair: config.foreign_writes == ForeignWrites::Repair,
        },
        source: access(source),
        target: access(target),
        pace: Pace { keys: config.limits.keys_per_second, bytes: config.limits.bytes_per_second },
    })
}

/// Source and target.
pub fn sites(config: &AgentConfig) -> Result<(&Site, &Site), Problem> {
    let [first, second] = &config.sites;
    if first.name == second.name {
        let text = format!("both sites are named {:?}; give them different names", first.name);
        return Err(problem(ProblemReason::UnknownSite, text));
    }
    match &config.active {
        active if *active == first.name => Ok((first, second)),
        active if *active == second.name => Ok((second, first)),
        active => Err(problem(
            ProblemReason::UnknownSite,
            format!("active: {active:?} names no site; write {:?} or {:?}", first.name, second.name),
        )),
    }
}

/// Writers of a site, and how they are kept out and let in; `None`: a person does that, or nobody.
pub fn writers(config: &AgentConfig, site: &str) -> Result<Option<Writers>, Problem> {
    let Some(Fence::Roles { roles, root }) = &config.fence else { return Ok(None) };
    let config = AgentConfig { active: site.to_owned(), ..config.clone() };
    let (source, _) = sites(&config)?;
    let refused = |message: String| problem(ProblemReason::FenceRefused, message);
    let missing = || refused(format!("fence.root says nothing of the site {site}: name both sites"));
    let root = root.get(site).ok_or_else(missing)?;
    let settings = order(&config, false)?.settings;
    let keyspace = settings.config.keyspace().map_err(|error| problem(reason(&error), error.to_string()))?;
    Ok(Some(Writers {
        id: settings.id,
        site: site.to_owned(),
        root: access(&Site { credentials: source.credentials.of_root(root), ..source.clone() }),
        own: access(source),
        roles: roles.clone(),
        spans: keyspace.spans(Side::Source),
    }))
}

fn mappings(config: &AgentConfig, source: &str, target: &str) -> Result<Vec<Mapping>, Problem> {
    if config.mappings.is_empty() {
        return Ok(Config::whole().mappings);
    }
    let mapping = |prefixes: &std::collections::BTreeMap<String, String>| {
        let of = |site: &str| {
            let missing =
                || format!("mappings: one has no prefix for the site {site:?}; name both sites in each");
            prefixes.get(site).cloned().ok_or_else(|| problem(ProblemReason::MappingInvalid, missing()))
        };
        Ok(Mapping { source: of(source)?, target: of(target)? })
    };
    config.mappings.iter().map(mapping).collect()
}

fn ignore_at(config: &AgentConfig, target: &str) -> Result<Side, Problem> {
    match config.ignore_site.as_deref() {
        None => Ok(Side::Source),
        Some(site) if site == config.active => Ok(Side::Source),
        Some(site) if site == target => Ok(Side::Target),
        Some(site) => {
            let text = format!("ignoreSite: {site:?} names no site; write {:?} or {target:?}", config.active);
            Err(problem(ProblemReason::UnknownSite, text))
        }
    }
}

fn access(site: &Site) -> Access {
    let Credentials { authority_file, certificate_file, key_file, user_file, password_file } =
        site.credentials.clone();
    let path = |file: Option<String>| file.map(PathBuf::from);
    Access {
        endpoints: site.endpoints.clone(),
        authority: path(authority_file),
        certificate: path(certificate_file).zip(path(key_file)),
        server_name: None,
        user: path(user_file).map(UserName::File).zip(path(password_file)),
    }
}

fn reason(error: &InvalidKeyspace) -> ProblemReason {
    match error {
        InvalidKeyspace::Pattern { .. } | InvalidKeyspace::TooLarge(_) => ProblemReason::PatternInvalid,
        InvalidKeyspace::Overlap { .. } | InvalidKeyspace::NoMapping | InvalidKeyspace::OwnKeys(_) => {
            ProblemReason::MappingInvalid
        }
    }
}

fn problem(reason: ProblemReason, message: String) -> Problem {
    Problem { reason, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &str) -> AgentConfig {
        let text = format!(
            r#"{{"fingerprint": "", "id": "default", "sites": [
            {{"name": "a", "endpoints": ["http://a:1"]}}, {{"name": "b", "endpoints": ["http://b:1"]}}]{more}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn active_says_which_way_it_goes() {
        for (active, from, to) in [("a", "http://a:1", "http://b:1"), ("b", "http://b:1", "http://a:1")] {
            let order = order(&config(&format!(r#", "active": "{active}""#)), false).unwrap();
            assert_eq!(
                (order.source.endpoints, order.target.endpoints),
                (vec![from.to_owned()], vec![to.to_owned()])
            );
        }
    }

    #[test]
    fn mappings_and_patterns_go_by_the_names_of_sites() {
        let text = r#", "active": "b", "mappings": [{"a": "/x/", "b": "/y/"}], "ignore": ["/y/l.*"], "ignoreSite": "a""#;
        let keys = order(&config(text), true).unwrap().settings;
        let mapping = Mapping { source: "/y/".to_owned(), target: "/x/".to_owned() };
        assert_eq!(
            (keys.config.mappings, keys.config.ignore_at, keys.resync),
            (vec![mapping], Side::Target, true)
        );
    }

    #[test]
    fn roots_credentials_stand_for_those_of_the_mirror() {
        let text = r#", "active": "a", "mappings": [{"a": "/x/", "b": "/y/"}], "fence": {"Roles": {"roles": ["w"],
            "root": {"a": {"certificateFile": "r.crt", "keyFile": "r.key"}, "b": {"userFile": "u", "passwordFile": "p"}}}}"#;
        let mut config = config(text);
        for site in &mut config.sites {
            site.credentials.authority_file = Some("ca".to_owned());
            site.credentials.certificate_file = Some("m.crt".to_owned());
            site.credentials.key_file = Some("m.key".to_owned());
        }
        let of = |site: &str| writers(&config, site).unwrap().unwrap();
        let certificate = |name: &str| (format!("{name}.crt").into(), format!("{name}.key").into());
        let (a, b) = (of("a"), of("b"));
        assert_eq!((a.root.certificate, a.root.user), (Some(certificate("r")), None));
        assert_eq!((b.root.certificate, b.root.user.is_some()), (Some(certificate("m")), true));
        assert_eq!((a.root.authority, a.own.certificate), (Some("ca".into()), Some(certificate("m"))));
        assert_eq!((a.spans[0].start.as_slice(), b.spans[0].start.as_slice()), (&b"/x/"[..], &b"/y/"[..]));
        let manual = AgentConfig { fence: Some(Fence::Manual), ..config.clone() };
        assert!(writers(&manual, "a").unwrap().is_none());
        let Some(Fence::Roles { root, .. }) = &mut config.fence else { panic!("it is one of roles") };
        root.remove("b");
        assert_eq!(writers(&config, "b").unwrap_err().reason, ProblemReason::FenceRefused);
    }

    #[test]
    fn what_cannot_be_meant_has_its_own_reason() {
        for (more, reason) in [
            (r#", "active": "c""#, ProblemReason::UnknownSite),
            (r#", "active": "a", "ignoreSite": "c""#, ProblemReason::UnknownSite),
            (r#", "active": "a", "ignore": ["("]"#, ProblemReason::PatternInvalid),
            (r#", "active": "a", "mappings": [{"a": "/"}]"#, ProblemReason::MappingInvalid),
            (
                r#", "active": "a", "mappings": [{"a": "/", "b": "/"}, {"a": "/x", "b": "/x"}]"#,
                ProblemReason::MappingInvalid,
            ),
        ] {
            let problem = order(&config(more), false).err().map(|problem| problem.reason);
            assert_eq!(problem, Some(reason), "{more}");
        }
    }
}
