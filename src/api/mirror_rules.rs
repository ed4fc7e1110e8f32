//! What `kubectl apply` refuses of an EtcdMirror: validation rules of the schema, in CEL.
//!
//! **Invariant:** as in [`super::rules`]: every message names the field and ends with the fix.

use kube::core::Rule;

use super::rules::explained;

/// Both names, for messages. A rule says it only of two sites. (`join` would be reckoned as if it had no end.)
const EITHER: &str = "self.sites[0].name + ' or ' + self.sites[1].name";
/// The same.
const BOTH: &str = "self.sites[0].name + ' and ' + self.sites[1].name";

/// Names of children are made of the mirror's, and the label that finds its Pods is its name.
pub(super) fn name_leaves_room_for_children() -> Rule {
    Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$')").message(
        "metadata.name must be at most 40 characters: small letters, digits and dashes, beginning with a letter. \
         Names of a Deployment and of ConfigMaps are made of it. Choose a shorter or simpler name.",
    )
}

pub(super) fn sites_are_two() -> Rule {
    explained(
        "self.size() == 2".to_owned(),
        "'sites must be exactly two, the one that is written to and the one that follows, and there are ' + \
         (self.size() < 2 ? 'fewer' : 'more') + '. Use one EtcdMirror for each pair of sites.'",
    )
}

/// Where a namespace is named, the operator judges: a rule cannot know the object's own.
pub(super) fn sites_are_not_one_cluster() -> Rule {
    Rule::new(
        "self.size() != 2 || !self.all(site, has(site.clusterRef) && !has(site.clusterRef.namespace)) || \
         self.exists(one, self.exists(other, one.clusterRef.name != other.clusterRef.name))",
    )
    .message(
        "sites name the same EtcdCluster twice: a cluster cannot follow itself. Use another clusterRef or external \
         for one of them.",
    )
}

pub(super) fn sites_share_no_endpoint() -> Rule {
    Rule::new(
        "self.size() != 2 || !self.all(site, has(site.external)) || !self[0].external.endpoints.exists(endpoint, \
         endpoint in self[1].external.endpoints)",
    )
    .message(
        "sites have an endpoint in common: they would be the same cluster, and a cluster cannot follow itself. Use \
         each endpoint in one of them only.",
    )
}

pub(super) fn sites_keep_their_names() -> Rule {
    explained(
        "oldSelf.all(old, self.exists(site, site.name == old.name))".to_owned(),
        "'names of sites cannot change: the records in etcd are kept by them. Keep ' + oldSelf[0].name + ' and ' + \
         oldSelf[1].name + ', or create a new EtcdMirror with another id.'",
    )
}

pub(super) fn site_is_one_thing() -> Rule {
    Rule::new("has(self.clusterRef) != has(self.external)").message(
        "a site of sites must have exactly one of clusterRef and external, so that it is clear which etcd is meant. \
         Keep one of them.",
    )
}

pub(super) fn site_name_can_be_a_file() -> Rule {
    explained(
        "self.matches('^[a-z]([-a-z0-9]{0,29}[a-z0-9])?$')".to_owned(),
        "'the name ' + self + ' in sites must be at most 31 small letters, digits and dashes, beginning with a \
         letter. Use one such as eqiad.'",
    )
}

pub(super) fn active_is_a_site() -> Rule {
    explained(
        "self.sites.size() != 2 || self.sites.exists(site, site.name == self.active)".to_owned(),
        &format!("'active ' + self.active + ' is no name in sites. Use ' + {EITHER} + '.'"),
    )
}

pub(super) fn ignore_site_is_a_site() -> Rule {
    explained(
        "!has(self.ignoreSite) || self.sites.size() != 2 || self.sites.exists(site, site.name == self.ignoreSite)"
            .to_owned(),
        &format!("'ignoreSite ' + self.ignoreSite + ' is no name in sites. Use ' + {EITHER} + '.'"),
    )
}

pub(super) fn id_can_be_a_key() -> Rule {
    explained(
        "self.matches('^[a-z0-9-]{1,63}$') && self != 'claims'".to_owned(),
        "'id ' + self + ' cannot be a part of a key: it must be 1 to 63 small letters, digits and dashes, and not \
         claims. Use one such as default.'",
    )
}

pub(super) fn id_stays() -> Rule {
    explained(
        "self == oldSelf".to_owned(),
        "'id cannot change (' + oldSelf + ' -> ' + self + '): the checkpoint in etcd is kept by it. Keep ' + \
         oldSelf + ', or create a new EtcdMirror.'",
    )
}

pub(super) fn mappings_name_both_sites() -> Rule {
    explained(
        "!has(self.mappings) || self.sites.size() != 2 || self.mappings.all(mapping, mapping.prefixes.size() == 2 && \
         self.sites.all(site, site.name in mapping.prefixes))"
            .to_owned(),
        &format!(
            "'mappings: prefixes must have exactly the names of both sites, so that it is clear what stands for what. \
             Use ' + {BOTH} + '.'"
        ),
    )
}

/// A key in two mappings would have two names on the other side.
pub(super) fn mappings_are_disjoint() -> Rule {
    Rule::new(
        "!has(self.mappings) || self.mappings.exists(mapping, self.sites.exists(site, !(site.name in \
         mapping.prefixes))) || self.sites.all(site, self.mappings.all(one, self.mappings.exists_one(other, \
         one.prefixes[site.name].startsWith(other.prefixes[site.name]))))",
    )
    .message(
        "mappings overlap: at one of the sites a prefix begins with another one, so a key would be mirrored twice. \
         Use prefixes of which none begins with another.",
    )
}

pub(super) fn prefixes_are_not_the_mirrors() -> Rule {
    Rule::new("self.all(site, !self[site].startsWith('/__quorate/mirror/'))").message(
        "mappings: prefixes may not begin with /__quorate/mirror/, where mirrors keep their checkpoints. Use \
         another prefix.",
    )
}

pub(super) fn patterns_are_short() -> Rule {
    Rule::new("self.all(pattern, pattern.size() > 0 && pattern.size() <= 1024)").message(
        "ignore: a pattern must have from 1 to 1024 characters, since it is tried on every key. Use several short \
         ones.",
    )
}

pub(super) fn endpoints_are_there() -> Rule {
    Rule::new("self.size() > 0").message(
        "external.endpoints is empty, so there is nothing to dial. Use the client URLs of all members, such as \
         https://etcd-0.codfw.example:2379.",
    )
}

pub(super) fn endpoints_are_urls() -> Rule {
    explained(
        "self.all(endpoint, endpoint.matches('^https?://([a-zA-Z0-9._-]+|\\\\[[0-9a-fA-F:.]+\\\\]):[0-9]{1,5}$'))"
            .to_owned(),
        "'external.endpoints must be URLs with a port and without a path, and one of ' + self.join(', ') + ' is \
         none. Use such as https://etcd-0.codfw.example:2379.'",
    )
}

pub(super) fn endpoints_are_alike() -> Rule {
    Rule::new(
        "self.all(endpoint, endpoint.startsWith('https://')) || self.all(endpoint, !endpoint.startsWith('https://'))",
    )
    .message(
        "external.endpoints mix http and https: they are of one cluster, which has either. Use https for all of \
         them, or http.",
    )
}

pub(super) fn external_has_certificates() -> Rule {
    Rule::new(
        "has(self.tlsSecretRef) || self.endpoints.size() == 0 || !self.endpoints.all(endpoint, \
         endpoint.startsWith('https://'))",
    )
    .message(
        "external.endpoints of https need external.tlsSecretRef: no authority is trusted unless it is named. Use a \
         Secret with ca.crt, and with tls.crt and tls.key if clients need a certificate.",
    )
}

pub(super) fn external_uses_its_certificates() -> Rule {
    Rule::new(
        "!has(self.tlsSecretRef) || self.endpoints.size() == 0 || !self.endpoints.all(endpoint, \
         endpoint.startsWith('http://'))",
    )
    .message("external.tlsSecretRef is only used with https: for http it would be ignored. Use https, or remove it.")
}

pub(super) fn fence_names_roles() -> Rule {
    Rule::new("self.mode != 'Roles' || (has(self.roles) && self.roles.size() > 0)").message(
        "fence.mode Roles needs fence.roles with the etcd roles of whoever writes to the active site. Use their \
         names, or mode Manual if you stop the writers yourself.",
    )
}

pub(super) fn fence_uses_its_roles() -> Rule {
    Rule::new("self.mode != 'Manual' || (!has(self.roles) && !has(self.root))").message(
        "fence.roles and fence.root are only used in mode Roles: in mode Manual nobody is kept from writing. Use \
         mode Roles, or remove them.",
    )
}

/// The old side is fenced, and the new one gets what was taken.
pub(super) fn fence_reaches_both_sites() -> Rule {
    explained(
        "!has(self.fence) || self.fence.mode != 'Roles' || self.sites.size() != 2 || (has(self.fence.root) && \
         self.fence.root.size() == 2 && self.sites.all(site, self.fence.root.exists(root, root.site == site.name)))"
            .to_owned(),
        &format!(
            "'fence.root must have one entry for each site: roles are changed at the old one and at the new one. Use \
             ' + {BOTH} + '.'"
        ),
    )
}

pub(super) fn root_has_a_secret() -> Rule {
    Rule::new("has(self.tlsSecretRef) || has(self.authSecretRef)").message(
        "fence.root needs a Secret of etcd's user root at each site. Use tlsSecretRef or authSecretRef.",
    )
}
