//! What can go wrong between a person and the Kubernetes API, as sentences that say what to do.

use super::Exit;

/// A failure with a sentence and an exit code of its own.
#[derive(thiserror::Error, Debug)]
pub(super) enum Problem {
    /// What was typed cannot be used.
    #[error("{0}")]
    Usage(String),
    /// Something that should be there is not, or a program failed.
    #[error("{0}")]
    Other(String),
    /// Kubernetes refused the request.
    #[error("{0}")]
    Forbidden(String),
    /// The deadline passed.
    #[error(
        "the Kubernetes API at {address} did not answer within {seconds} s; check that it is the right one \
             (kubectl config current-context) or give it longer with --timeout"
    )]
    Timeout {
        /// Of the API server.
        address: String,
        /// What was allowed.
        seconds: f64,
    },
    /// No connection.
    #[error("the Kubernetes API at {address} cannot be reached: {cause}")]
    Unreachable {
        /// Of the API server.
        address: String,
        /// The innermost error: the ones around it only say "client error".
        cause: String,
    },
    /// The kind is unknown to this API server.
    #[error(
        "Quorate is not installed in this Kubernetes cluster: it does not know the resource \
             etcdclusters.quorate.dev. Install the definitions with \
             `kubectl quorate crds | kubectl apply --server-side -f -`, then the operator"
    )]
    NotInstalled,
    /// An answer that none of the above describes.
    #[error("could not {request}: the Kubernetes API answered {code}, {message}")]
    Refused {
        /// As [`Request`] prints itself.
        request: String,
        /// Of HTTP.
        code: u16,
        /// As the server worded it.
        message: String,
    },
    /// No answer, or one that cannot be read.
    #[error("could not {request}")]
    Request {
        /// As [`Request`] prints itself.
        request: String,
        /// What kube said.
        source: Box<kube::Error>,
    },
}

/// A request to the API, in the words of RBAC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// `get`, `list`, `watch` or `create`.
    pub(super) verb: &'a str,
    /// Plural name and group.
    pub(super) resource: &'a str,
    /// Of one object.
    pub(super) name: Option<&'a str>,
    /// `None` means all of them.
    pub(super) namespace: Option<&'a str>,
}

impl std::fmt::Display for Request<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, resource, name, namespace } = self;
        write!(formatter, "{verb} {resource}")?;
        if let Some(name) = name {
            write!(formatter, " {name}")?;
        }
        match namespace {
            Some(namespace) => write!(formatter, " in namespace {namespace}"),
            None => write!(formatter, " in all namespaces"),
        }
    }
}

const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;

/// Says what kube's error means for `request` sent to `address`.
pub(super) fn classify(error: kube::Error, request: &Request<'_>, address: &str) -> Problem {
    let unreachable = |cause| Problem::Unreachable { address: address.to_owned(), cause };
    #[expect(clippy::wildcard_enum_match_arm, reason = "kube's enum depends on its features")]
    match error {
        kube::Error::Api(status) if status.code == FORBIDDEN => forbidden(request),
        kube::Error::Api(status) if status.code == UNAUTHORIZED => Problem::Forbidden(format!(
            "the Kubernetes API at {address} does not accept your credentials; log in again or choose another \
             --context"
        )),
        // A kind that does not exist has no object's name in the answer.
        kube::Error::Api(status)
            if status.code == NOT_FOUND
                && request.resource.ends_with(crate::api::GROUP)
                && status.details.as_ref().is_none_or(|details| details.name.is_empty()) =>
        {
            Problem::NotInstalled
        }
        kube::Error::Api(status) => {
            Problem::Refused { request: request.to_string(), code: status.code, message: status.message }
        }
        kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code))
            if code.as_u16() == FORBIDDEN =>
        {
            forbidden(request)
        }
        kube::Error::HyperError(source) => unreachable(innermost(&source)),
        kube::Error::Service(source) => unreachable(innermost(source.as_ref())),
        other => Problem::Request { request: request.to_string(), source: Box::new(other) },
    }
}

fn forbidden(request: &Request<'_>) -> Problem {
    let narrower = match request.namespace {
        Some(_) => "",
        None => ", or name one namespace with -n",
    };
    Problem::Forbidden(format!(
        "you may not {request}; ask an administrator of this Kubernetes cluster for that right{narrower}"
    ))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// The exit code that an error asks for.
pub(super) fn exit(error: &anyhow::Error) -> Exit {
    match error.chain().find_map(|cause| cause.downcast_ref::<Problem>()) {
        Some(Problem::Usage(_)) => Exit::Usage,
        Some(Problem::Forbidden(_)) => Exit::Forbidden,
        Some(Problem::Timeout { .. }) => Exit::Timeout,
        Some(
            Problem::Other(_)
            | Problem::Unreachable { .. }
            | Problem::NotInstalled
            | Problem::Refused { .. }
            | Problem::Request { .. },
        )
        | None => Exit::Unavailable,
    }
}

/// One sentence a level. A level that the one above already quotes is left out.
pub(super) fn sentences(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut above = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !lines.is_empty() && above.contains(&text) {
            continue;
        }
        let lead = if lines.is_empty() { "Error" } else { "  because" };
        let stop = if text.ends_with(['.', '!', '?']) { "" } else { "." };
        lines.push(format!("{lead}: {text}{stop}"));
        above = text;
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use kube::core::Status;

    use super::*;

    const LIST: Request<'_> =
        Request { verb: "list", resource: "etcdclusters.quorate.dev", name: None, namespace: Some("prod") };

    fn check(error: kube::Error, code: Exit, expected: Expect) {
        let error = anyhow::Error::from(classify(error, &LIST, "https://10.0.0.1:6443"));
        assert_eq!(exit(&error), code);
        expected.assert_eq(&sentences(&error));
    }

    fn answer(code: u16, reason: &str, message: &str) -> kube::Error {
        kube::Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn forbidden_names_verb_resource_and_namespace() {
        check(
            answer(403, "Forbidden", "etcdclusters.quorate.dev is forbidden: User \"eve\" cannot list …"),
            Exit::Forbidden,
            expect![
                "Error: you may not list etcdclusters.quorate.dev in namespace prod; ask an administrator of this Kubernetes cluster for that right."
            ],
        );
    }

    #[test]
    fn an_unknown_kind_says_how_to_install() {
        check(
            answer(404, "Failed to parse error data", "404 page not found"),
            Exit::Unavailable,
            expect!["Error: Quorate is not installed in this Kubernetes cluster: it does not know the resource etcdclusters.quorate.dev. Install the definitions with `kubectl quorate crds | kubectl apply --server-side -f -`, then the operator."],
        );
    }

    #[test]
    fn no_connection_names_the_address_and_the_innermost_cause() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        check(
            kube::Error::Service(Box::new(std::io::Error::other(refused))),
            Exit::Unavailable,
            expect![
                "Error: the Kubernetes API at https://10.0.0.1:6443 cannot be reached: connection refused."
            ],
        );
    }

    #[test]
    fn bad_credentials_are_not_called_a_missing_right() {
        check(
            answer(401, "Unauthorized", "Unauthorized"),
            Exit::Forbidden,
            expect![
                "Error: the Kubernetes API at https://10.0.0.1:6443 does not accept your credentials; log in again or choose another --context."
            ],
        );
    }

    #[test]
    fn any_other_answer_is_quoted() {
        check(
            answer(500, "InternalError", "etcd is on fire"),
            Exit::Unavailable,
            expect!["Error: could not list etcdclusters.quorate.dev in namespace prod: the Kubernetes API answered 500, etcd is on fire."],
        );
    }

    #[test]
    fn a_level_that_repeats_the_one_below_is_said_once() {
        let inner = std::io::Error::other("the disk is full");
        let error =
            anyhow::Error::from(inner).context("could not write: the disk is full").context("no picture");
        expect![[r#"
            Error: no picture.
              because: could not write: the disk is full."#]].assert_eq(&sentences(&error));
    }
}
